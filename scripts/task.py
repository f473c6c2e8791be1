"""`philab task create` and `philab task list`: the tasks of this instance, made where the database is."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from engine.errors import NotAllowed
from engine.settings import Settings, read_settings
from engine.spec.reading import read_spec, spec_to_yaml
from scripts.exit_code import command
from scripts.result_table import table

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from db.viewer import Viewer

STATUSES = ("draft", "open", "in_progress", "completed", "archived")


@command
def main(argv: Sequence[str]) -> None:
    """Creates a task, or lists those there are."""
    asked = _parser().parse_args(argv)
    asked.act(asked, read_settings())


def create(asked: argparse.Namespace, settings: Settings) -> None:
    """Makes a task of a spec and prints its id."""
    from db.tasks import TaskDraft, create_task

    named = read_spec(asked.spec, default_model=settings.default_model)
    draft = TaskDraft(
        name=asked.name or named.name,
        description=asked.description or named.description,
        hypothesis=asked.hypothesis,
        spec_yaml=spec_to_yaml(named.spec),
        n_shards=asked.shards,
        replicas=asked.replicas,
        delta=asked.delta,
        priority=asked.priority,
    )
    with _as_author(settings, asked.api_key) as (session, viewer):
        made = create_task(session, viewer, draft, settings=settings)
    print(f"Task {made.id} is {made.status}: {made.n_shards} shards of {made.shard_size} prompts × {made.replicas} replicas.")
    print(f"Contributors run it with: philab contribute run --task-id {made.id}")


def show(asked: argparse.Namespace, settings: Settings) -> None:
    """Prints the tasks by priority."""
    from db.tasks import list_tasks

    with _as_author(settings, asked.api_key, visitor=True) as (session, viewer):
        tasks = list_tasks(session, viewer, asked.status, asked.limit)
    rows = [[str(task.id), task.status, str(task.priority), f"{task.runs_completed}/{task.runs_needed}", task.name] for task in tasks]
    print(table(["task id", "status", "priority", "runs", "name"], rows) if rows else "There are no tasks yet.")


@contextmanager
def _as_author(settings: Settings, key: str | None, *, visitor: bool = False) -> "Iterator[tuple[Session, Viewer]]":
    """A session, and who asks: the owner of a local lab, on a hosted one whoever's key it is."""
    from db.connection import open_database
    from db.contributors import authenticate, ensure_owner
    from db.keys import read_pepper
    from db.viewer import Viewer

    database = open_database(settings)
    try:
        with database.session() as session:
            key = key or settings.platform.api_key
            if key and settings.mode == "hosted":
                viewer = authenticate(session, key, read_pepper(settings))
            elif settings.mode == "hosted" and not visitor:
                raise NotAllowed("a hosted instance wants to know who you are.", next_step="Set PHILAB_API_KEY, or give --api-key.")
            else:
                viewer = Viewer.visitor() if settings.mode == "hosted" else ensure_owner(session, settings)
            yield session, viewer
    finally:
        database.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="philab task", description="Create and list the tasks of this instance.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    make = commands.add_parser("create", help="make a task of a spec")
    make.set_defaults(act=create)
    make.add_argument("spec", help="a spec file (YAML or JSON), or the name of a shipped one")
    make.add_argument("--name", help="title of the task (default: the spec's)")
    make.add_argument("--description", default="", help="what it is about (default: the spec's)")
    make.add_argument("--hypothesis", default="", help="what you expect to be found")
    make.add_argument("--shards", type=int, metavar="N", help="parts that the prompts are cut into (default: as fits 50 runs)")
    make.add_argument("--replicas", type=int, metavar="N", help="people who answer each shard (default: 2)")
    make.add_argument("--delta", type=float, default=0.0, help="smallest effect of interest, in the metric's unit (default: 0)")
    make.add_argument("--priority", type=int, default=0, help="the higher, the earlier (default: 0)")
    listing = commands.add_parser("list", help="the tasks by priority")
    listing.set_defaults(act=show)
    listing.add_argument("--status", choices=STATUSES, help="only these")
    listing.add_argument("--limit", type=int, default=50, help="at most so many (default: 50)")
    for one in (make, listing):
        one.add_argument("--api-key", metavar="KEY", help="hosted: who you are; better: PHILAB_API_KEY")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
