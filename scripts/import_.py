"""`philab import DIR...`: runs that were kept in folders come into the database. Doing it twice changes nothing."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from engine.errors import NotFound
from engine.settings import read_settings
from scripts.exit_code import command


@command
def main(argv: Sequence[str]) -> None:
    """Imports every run in or directly below the folders given."""
    asked = _parser().parse_args(argv)
    folders = [run for folder in asked.folders for run in _runs(folder)]
    from db.connection import open_database
    from db.contributors import ensure_owner
    from db.imports import import_folder
    from engine.store import Store

    settings = read_settings()
    database, store = open_database(settings), Store(settings.store or settings.data_dir / "store")
    try:
        for folder in folders:
            with database.session() as session:
                run = import_folder(session, ensure_owner(session, settings), folder, store=store)
                print(f"{folder}: run {run.id} ({run.status})")
    finally:
        database.close()
    print(f"{len(folders)} run(s) are in the lab. See them with: philab app")


def _runs(folder: Path) -> list[Path]:
    """The folder itself if it holds a run, else those below that do."""
    if (folder / "run.json").is_file():
        return [folder]
    found = sorted(file.parent for file in folder.glob("*/run.json"))
    if not found:
        raise NotFound(f"{folder} holds no run: run.json is missing.", next_step="Give the folder of `philab run --out`.")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="philab import", description="Add runs that were kept in folders to the database.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a run's folder, or one that holds such folders")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
