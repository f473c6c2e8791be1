"""`philab admin create NAME`: the first administrator of an instance, made where the database is."""

import argparse
from collections.abc import Sequence

from engine.settings import read_settings
from scripts.exit_code import command


@command
def main(argv: Sequence[str]) -> None:
    """Makes a person with the role admin and prints the key, once."""
    asked = _parser().parse_args(argv)
    from db.connection import open_database
    from db.contributors import register
    from db.keys import read_pepper

    settings = read_settings()
    database = open_database(settings)
    try:
        with database.session() as session:
            made = register(session, username=asked.name, email=asked.email, pepper=read_pepper(settings), role="admin")
    finally:
        database.close()
    print(f"{made.username} is an administrator of this instance.")
    print(f"API key (shown this once): {made.api_key}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="philab admin", description="Make a person an administrator of this instance.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    create = commands.add_parser("create", help="make a new person with the role admin, and print the key")
    create.add_argument("name", metavar="NAME", help="user name: 3 to 32 letters, digits, '-' or '_'")
    create.add_argument("--email", help="never shown to others")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
