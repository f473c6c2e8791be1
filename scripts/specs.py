"""`philab specs`: what comes with philab and can be run by name."""

import argparse
from collections.abc import Sequence

from engine.presets import presets
from engine.spec.reading import read_spec, shipped_specs
from scripts.exit_code import command


@command
def main(argv: Sequence[str]) -> None:
    """Prints the shipped specs and presets."""
    argparse.ArgumentParser(prog="philab specs", description="List the shipped specs and presets.").parse_args(argv)
    names = shipped_specs()
    width = max(map(len, names), default=0)
    print("Specs (philab run NAME):")
    for name in names:
        named = read_spec(name)
        print(f"  {name:<{width}}  {named.description or named.name}".rstrip())
    print("\nPresets (--preset NAME), the caps they put on a spec:")
    for name, tier in presets().items():
        caps = ", ".join(f"{cap} {value}" for cap, value in tier.model_dump().items() if value is not None)
        print(f"  {name:<12}  {caps}")


if __name__ == "__main__":
    raise SystemExit(main())
