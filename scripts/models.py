"""`philab models`: models by their short names, and the memory that their weights take."""

import argparse
from collections.abc import Sequence

from engine.model_presets import ModelPreset, model_presets
from engine.models.memory import GIB, preset_bytes
from engine.spec.base import Dtype, Quantization
from scripts.exit_code import command

PRECISIONS: dict[str, tuple[Dtype, Quantization | None]] = {
    "float32": ("float32", None),
    "16 bits": ("bfloat16", None),
    "int8": ("bfloat16", "int8"),
    "nf4, fp4": ("bfloat16", "nf4"),
}
"""Column -> dtype and quantisation; what stays dense under quantisation is counted in 16 bits."""


@command
def main(argv: Sequence[str]) -> None:
    """Prints the models that have a short name."""
    about = "List the models that have a short name. Any other causal language model can be used by its hub id or folder."
    argparse.ArgumentParser(prog="philab models", description=about).parse_args(argv)
    rows = [_head(), *(_row(preset) for preset in model_presets().values())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.ljust(width) if place in (0, 7) else cell.rjust(width) for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(cells).rstrip())
    print("\nGiB are those of the weights; 'gated' ones need HF_TOKEN and terms accepted on the hub.")


def _head() -> list[str]:
    return ["name", "parameters", "tokens", *(f"{column} (GiB)" for column in PRECISIONS), "on the hub"]


def _row(preset: ModelPreset) -> list[str]:
    sizes = [preset_bytes(preset.parameters, preset.dense_parameters, *precision) / GIB for precision in PRECISIONS.values()]
    place = f"{preset.hub_id or 'shipped'}{' (gated)' if preset.gated else ''}"
    return [preset.key, _short(preset.parameters), f"{preset.context_tokens:,}", *(_gib(size) for size in sizes), place]


def _gib(size: float) -> str:
    return f"{size:.2f}" if size >= 0.005 else "<0.01"


def _short(count: int) -> str:
    """The count in millions or billions."""
    return f"{count / 1e9:.1f} B" if count >= 10**9 else f"{count / 1e6:.1f} M"


if __name__ == "__main__":
    raise SystemExit(main())
