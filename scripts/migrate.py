"""`philab migrate`: brings the database to the newest schema. Every start does so by itself; this is for doing it ahead of one."""

import argparse
from collections.abc import Sequence

from db.connection import open_database
from db.migrate import current
from engine.settings import read_settings
from scripts.exit_code import command


@command
def main(argv: Sequence[str]) -> None:
    """Runs the migrations that are missing, or only tells where the database is."""
    asked = _parser().parse_args(argv)
    database = open_database(read_settings(), migrate=not asked.show)
    try:
        print(f"the database is at revision {current(database.engine) or 'none: it is empty'}")
    finally:
        database.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="philab migrate", description="Bring the database to the newest schema; doing it twice is harmless."
    )
    parser.add_argument("--show", action="store_true", help="change nothing, only print the revision")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
