"""`philab selftest MODEL`: whether the engine can be trusted with a model on this machine."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from engine.errors import Conflict
from engine.presets import apply_preset
from engine.result import SelfTestResult
from engine.spec.any import NamedSpec, parse_spec
from engine.spec.base import Dtype, Quantization
from engine.spec.selftest import SelfTestSpec
from scripts.execution import Execution, execute
from scripts.exit_code import command
from scripts.result_table import describe
from scripts.run import add_machine_arguments


@command
def main(argv: Sequence[str]) -> int:
    """Makes every check and prints the table; 1 when one of them failed."""
    asked = _parser().parse_args(argv)
    if asked.out:
        done = _kept(asked, Path(asked.out))
        where = f"\nRun {done.run_id} is in {asked.out}; add it to the lab with: philab import {asked.out}"
    else:
        with tempfile.TemporaryDirectory(prefix="philab-selftest-") as folder:
            done, where = _kept(asked, Path(folder)), ""
    print(describe(done.result) + where)
    assert isinstance(done.result, SelfTestResult), "the spec is a self-test"
    return 1 if done.result.failed else 0


def _kept(asked: argparse.Namespace, folder: Path) -> Execution:
    try:
        return execute(_named(asked), folder, device=asked.device, preset=asked.preset)
    except Conflict as used:
        raise Conflict(used.message, next_step="Choose another one with --out.") from used


def _named(asked: argparse.Namespace) -> NamedSpec:
    model = {"id": asked.model, "revision": asked.revision, "dtype": asked.dtype, "quantization": asked.quantization}
    spec = parse_spec({"kind": "selftest", "model": model, "tokens": asked.tokens})
    return NamedSpec(spec=apply_preset(spec, asked.preset) if asked.preset else spec, name=f"Self-test of {asked.model}"[:200])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="philab selftest",
        description="Check the engine on a model: padded = unpadded, cached = uncached, sweep = whole passes, sums of the residual stream.",
        epilog="Exits with 0 when no check failed, with 1 when one did.",
    )
    parser.add_argument("model", metavar="MODEL", help="shipped model, short name, Hugging Face id, or folder")
    parser.add_argument("--revision", metavar="COMMIT", help="commit of the Hugging Face repository")
    parser.add_argument("--dtype", choices=get_args(Dtype), default="float32", help="precision (default: float32)")
    parser.add_argument("--quantization", choices=get_args(Quantization), help="store the weights in fewer bits")
    tokens = SelfTestSpec.model_fields["tokens"].default
    parser.add_argument("--tokens", type=int, default=tokens, metavar="N", help=f"tokens of each prompt (default: {tokens})")
    parser.add_argument("--out", metavar="DIR", help="keep the run in this folder, new or empty; without it nothing is kept")
    add_machine_arguments(parser)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
