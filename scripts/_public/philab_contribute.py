"""Lend compute to a community instance: `python -m philab_contribute`, the same as the command `philab-contribute`."""

from scripts.contribute import main

__all__ = ["main"]

if __name__ == "__main__":
    raise SystemExit(main())
