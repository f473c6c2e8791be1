"""`philab run SPEC --out DIR`: one run on this machine, kept in a folder. No database, no pages."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from engine.errors import Conflict
from engine.presets import apply_preset, presets
from engine.settings import Device, read_settings
from engine.spec.any import NamedSpec
from engine.spec.reading import read_spec
from scripts.execution import execute, file_name
from scripts.exit_code import command
from scripts.result_table import describe


@command
def main(argv: Sequence[str]) -> None:
    """Runs a spec, keeps everything in a folder and prints the largest effects."""
    asked = _parser().parse_args(argv)
    named = read_named(asked.spec, asked.preset)
    out = Path(asked.out or f"results/runs/{file_name(named)}")
    try:
        done = execute(named, out, device=asked.device, preset=asked.preset)
    except Conflict as used:
        raise Conflict(used.message, next_step="Choose another one with --out.") from used
    print(describe(done.result))
    print(f"\nRun {done.run_id} is in {out}; add it to the lab with: philab import {out}")


def read_named(spec: str, preset: str | None) -> NamedSpec:
    """The spec of that name or file under the caps of a preset; says what a foreign format lost on the way."""
    named = read_spec(spec, default_model=read_settings().default_model)
    for note in named.notes:
        print(f"note: {note}")
    return replace(named, spec=apply_preset(named.spec, preset)) if preset else named


def add_machine_arguments(parser: argparse._ActionsContainer) -> None:
    """The flags of every command that computes."""
    parser.add_argument("--preset", metavar="NAME", help=f"cap the work for this machine: {', '.join(presets())}")
    parser.add_argument("--device", choices=get_args(Device), help="where to compute (default: the setting 'device')")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="philab run", description="Run a spec here and keep the result in a folder; needs no database.")
    parser.add_argument("spec", help="a spec file (YAML or JSON), or the name of a shipped one (see: philab specs)")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for the run; new or empty, or an unfinished run of this spec to go on with (default: results/runs/NAME-HASH)",
    )
    add_machine_arguments(parser)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
