"""The command `philab`: finds the sub-command and loads only that one, so that help is instant."""

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from engine.provenance import engine_version
from scripts.exit_code import command


class Command(NamedTuple):
    """A sub-command: the module whose `main` it is, and what it does."""

    module: str
    help: str


COMMANDS = {
    "app": Command("scripts.app", "open the lab in the browser: pages and API in one process"),
    "run": Command("scripts.run", "run a spec here and keep the result in a folder; needs no database"),
    "import": Command("scripts.import_", "add the folders of such runs to the database"),
    "selftest": Command("scripts.selftest", "check the engine on a model of yours"),
    "specs": Command("scripts.specs", "list the shipped specs and presets"),
    "models": Command("scripts.models", "list the models that have a short name, and the memory they take"),
    "demo": Command("scripts.demo", "the whole chain on this machine: task, five contributors, submissions, a finding"),
    "contribute": Command("scripts.contribute", "lend compute to a community instance"),
    "task": Command("scripts.task", "create and list the tasks of this instance"),
    "worker": Command("scripts.worker", "work off queued runs, on as many machines as you like"),
    "migrate": Command("scripts.migrate", "bring the database to the newest schema"),
    "admin": Command("scripts.admin", "make a person an administrator of this instance"),
}


@command
def main(argv: Sequence[str]) -> int | None:
    """Runs the sub-command that the first argument names."""
    chosen = _parser().parse_args(argv[:1]).command
    return import_module(COMMANDS[chosen].module).main(list(argv[1:]))


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="philab",
        usage="philab COMMAND ...",
        description="An open interpretability lab: ask a language model a question of its insides, alone or as a community.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<{width}}  {entry.help}" for name, entry in COMMANDS.items())
        + "\n\n'philab COMMAND --help' explains each of them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"philab {engine_version()}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
