"""`philab contribute`: lend compute to a community instance, over HTTPS, with nothing lost on the way."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import CommunityUnreachable, LabError
from engine.settings import Settings, read_settings
from scripts.community import Community
from scripts.contributor_home import ContributorHome, Identity, check_enabled, instance_url, key_for
from scripts.exit_code import command
from scripts.result_table import table
from scripts.run import add_machine_arguments
from scripts.spool import Spool, deliver


class Place(NamedTuple):
    """Which instance, with which folder and settings."""

    home: ContributorHome
    settings: Settings
    url: str
    key: str | None
    insecure: bool

    def visitor(self) -> Community:
        """The instance as anybody sees it."""
        return Community(self.url, insecure=self.insecure)

    def member(self) -> Community:
        """The instance as this contributor.

        Raises:
            NotAllowed: there is no key for it here.
        """
        key = key_for(self.url, self.key, self.settings, self.home.identity())
        return Community(self.url, key, insecure=self.insecure)


class Command(NamedTuple):
    """A sub-command: what it does, and how."""

    help: str
    act: Callable[[Place, argparse.Namespace], None]


def register(place: Place, asked: argparse.Namespace) -> None:
    """Gets a key, keeps it, and prints it once."""
    answer = place.visitor().post("/register", {"username": asked.username, "email": asked.email})
    identity = Identity(url=place.url, username=asked.username, contributor_id=answer["contributor_id"], api_key=answer["api_key"])
    place.home.save(identity)
    print(f"Registered {asked.username} at {place.url}.")
    print(f"contributor id: {identity.contributor_id}")
    print(f"API key:        {identity.api_key}")
    print(f"Both are in {place.home.config_file}. Next: philab contribute list-tasks")


def list_tasks(place: Place, asked: argparse.Namespace) -> None:
    """Prints the tasks by priority."""
    tasks = listed(place.visitor().get("/tasks", status=asked.status, limit=asked.limit))
    if not tasks:
        print(f"No tasks{f' with status {asked.status}' if asked.status else ''} at {place.url}.")
        return
    rows = [
        [task["id"], task["status"], str(task["priority"]), f"{task['runs_completed']}/{task['runs_needed']}", task["name"]]
        for task in tasks
    ]
    print(table(["task id", "status", "priority", "runs", "name"], rows))


def run(place: Place, asked: argparse.Namespace) -> None:
    """Leases shards, runs them and sends the results."""
    from scripts.shard import contribute_shard

    for done in range(asked.shards):
        more = contribute_shard(
            place.member(),
            place.home,
            task_id=asked.task_id,
            preset=asked.preset,
            device=asked.device,
            telemetry=asked.geometry_telemetry,
            patience_s=asked.patience,
        )
        if not more:
            print("There is no shard for you right now." if not done else "There is no further shard for you right now.")
            return


def my_runs(place: Place, asked: argparse.Namespace) -> None:
    """Prints this contributor's submissions and their verdicts."""
    mine = listed(place.member().get("/results", contributor_id="me", limit=asked.limit))
    if not mine:
        print(f"You have sent nothing to {place.url} yet.")
        return
    rows = [[one["id"], one["submitted_at"][:16], one["status"], one.get("reason") or "", one["task_id"]] for one in mine]
    print(table(["submission", "sent", "verdict", "reason", "task"], rows))


def leaderboard(place: Place, asked: argparse.Namespace) -> None:
    """Prints who has contributed, counted from accepted submissions."""
    people = listed(place.visitor().get("/contributors", sort_by=asked.sort_by, limit=asked.limit))
    rows = [
        [f"{rank}. {one['username']}", str(one["runs_completed"]), f"{one['compute_donated_seconds'] / 3600:.2f}"]
        for rank, one in enumerate(people, start=1)
    ]
    print(table(["contributor", "accepted runs", "hours"], rows) if rows else "Nobody has an accepted run yet.")


def sync(place: Place, asked: argparse.Namespace) -> None:
    """Sends what waits in the spool for this instance."""
    spool = Spool(place.home)
    waiting = [one for one in spool.waiting() if one.url == place.url]
    faults = list[LabError]()
    for one in waiting:
        try:
            answer = deliver(spool, one, place.member(), patience_s=asked.patience)
            print(f"Sent {answer.body['id']}: {answer.body['status']}. See {answer.body['view_url']}")
        except LabError as fault:
            faults.append(fault)
    if faults:
        raise CommunityUnreachable(f"{len(faults)} of {len(waiting)} results were not taken; the first: {faults[0]}")
    print(f"{len(waiting)} waiting result(s) sent." if waiting else "Nothing waits to be sent.")


COMMANDS = {
    "register": Command("get a key, and keep it in ~/.philab/config.json", register),
    "list-tasks": Command("the tasks of the instance, by priority", list_tasks),
    "run": Command("lease a shard of a task, run it, send the result", run),
    "my-runs": Command("your submissions and their verdicts", my_runs),
    "leaderboard": Command("who has contributed, counted from accepted submissions", leaderboard),
    "sync": Command("send what could not be sent before", sync),
}


@command
def main(argv: Sequence[str]) -> None:
    """Runs one of the commands of contributors."""
    asked = _parser().parse_args(argv)
    home, settings = ContributorHome(asked.home), read_settings()
    check_enabled(settings)
    url = instance_url(asked.url, settings, home.identity())
    COMMANDS[asked.command].act(Place(home=home, settings=settings, url=url, key=asked.api_key, insecure=asked.insecure), asked)


def listed(answer: Any) -> list[dict[str, Any]]:
    """The rows of a list answer, whether bare or under `items`.

    Raises:
        CommunityUnreachable: it is neither.
    """
    rows = answer.get("items") if isinstance(answer, dict) else answer
    if not isinstance(rows, list):
        raise CommunityUnreachable("the instance answered with something else than a list.", next_step="Update philab.")
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="philab contribute", description="Lend compute to a community instance.")
    _add_place(parser, suppress=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {name: commands.add_parser(name, help=entry.help, description=entry.help) for name, entry in COMMANDS.items()}
    for one in parsers.values():
        _add_place(one, suppress=True)
    parsers["register"].add_argument("--username", required=True, help="shown on the leaderboard")
    parsers["register"].add_argument("--email", required=True, help="never shown to others")
    parsers["list-tasks"].add_argument("--status", choices=["open", "in_progress", "completed"], help="only these")
    parsers["leaderboard"].add_argument("--sort-by", choices=["runs", "compute_time"], default="runs", help="what to rank by")
    for name in ("list-tasks", "my-runs", "leaderboard"):
        parsers[name].add_argument("--limit", type=int, default=50, help="at most so many (default: 50)")
    parsers["run"].add_argument("--task-id", metavar="ID", help="the task; any open one when left out")
    parsers["run"].add_argument("--shards", type=int, default=1, metavar="N", help="go on for so many shards (default: 1)")
    parsers["run"].add_argument("--geometry-telemetry", action="store_true", help="send the geometry of the activations along")
    add_machine_arguments(parsers["run"])
    for name in ("run", "sync"):
        parsers[name].add_argument("--patience", type=float, default=60.0, metavar="S", help="seconds to keep trying to send (default: 60)")
    return parser


def _add_place(parser: argparse.ArgumentParser, *, suppress: bool) -> None:
    """The flags of the instance are understood before and after the sub-command."""
    left_out: Any = argparse.SUPPRESS if suppress else None
    parser.add_argument("--url", default=left_out, help="address of the instance (default: PHILAB_CENTRAL_URL, or where you registered)")
    parser.add_argument("--api-key", default=left_out, metavar="KEY", help="better: PHILAB_API_KEY; others can read a command line")
    parser.add_argument("--home", type=Path, default=left_out, metavar="DIR", help="folder of key, runs and spool (default: ~/.philab)")
    insecure: Any = argparse.SUPPRESS if suppress else False
    parser.add_argument("--insecure", action="store_true", default=insecure, help="accept http:// to another machine")


if __name__ == "__main__":
    raise SystemExit(main())
