"""`python -m scripts.run_experiment`: one run, written to plain files, and submitted to a task if asked."""

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.errors import SpecError
from engine.evidence.submission import summarise
from engine.settings import Settings, read_settings
from engine.spec.any import NamedSpec
from engine.store import write_atomically
from scripts.community import Community
from scripts.contributor_home import ContributorHome, check_enabled, instance_url, key_for
from scripts.execution import Execution, execute, file_name
from scripts.exit_code import command
from scripts.result_table import describe
from scripts.run import add_machine_arguments, read_named


@command
def main(argv: Sequence[str]) -> None:
    """Runs a spec, writes its files, and submits it when a task is named."""
    asked = _parser().parse_args(argv)
    settings = read_settings()
    if asked.task_id or asked.submit_to:
        return _for_a_task(asked, settings)
    if not asked.spec:
        raise SpecError("there is nothing to run.", next_step="Give --spec FILE_OR_NAME, or --submit-to URL --task-id ID.")
    named = read_named(asked.spec, asked.preset)
    folder = Path(asked.output_dir) / run_name(named)
    done = execute(named, folder, device=asked.device, preset=asked.preset, telemetry=asked.geometry_telemetry)
    print(describe(done.result))
    for file in write_files(done, experiments=folder.parent, geometry=Path(asked.geometry_dir)):
        print(f"wrote {file}")
    return None


def run_name(named: NamedSpec) -> str:
    """Name of a run's files: what it asks, and when it began."""
    return f"{file_name(named)}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"


def write_files(done: Execution, *, experiments: Path, geometry: Path) -> list[Path]:
    """Writes `<run>.json`, and the telemetry under the same name in the other folder; returns what was written."""
    name = f"{done.folder.name}.json"
    shared = {"run_id": done.run_id, "spec_sha256": done.spec.sha256, "spec": done.spec.model_dump(mode="json")}
    experiment = {
        **shared,
        "summary": summarise(done.result),
        "result": done.result.model_dump(mode="json"),
        "provenance": done.provenance.model_dump(mode="json"),
    }
    written = [_write(experiments / name, experiment)]
    if done.telemetry is not None:
        written.append(_write(geometry / name, {**shared, "telemetry": done.telemetry}))
    return written


def _write(file: Path, values: dict[str, Any]) -> Path:
    write_atomically(file, json.dumps(values, indent=1, allow_nan=False).encode())
    return file


def _for_a_task(asked: argparse.Namespace, settings: Settings) -> None:
    from scripts.shard import contribute_shard

    if not asked.task_id:
        raise SpecError("--submit-to names the instance, but not what the run is for.", next_step="Add --task-id ID.")
    if not asked.submit_to and not settings.platform.auto_submit:
        raise SpecError(
            "--task-id names a task, but nobody said that the run may be sent.",
            next_step="Add --submit-to URL, or set platform.auto_submit in app.yaml.",
        )
    check_enabled(settings)
    home = ContributorHome(asked.home)
    url = instance_url(asked.submit_to, settings, home.identity())
    if asked.api_key:
        print("note: others on this machine can read a key on the command line; PHILAB_API_KEY is safer.")
    community = Community(url, key_for(url, asked.api_key, settings, home.identity()), insecure=asked.insecure)
    sent = contribute_shard(
        community,
        home,
        task_id=asked.task_id,
        preset=asked.preset,
        device=asked.device,
        telemetry=asked.geometry_telemetry,
        same_question_as=read_named(asked.spec, None).spec if asked.spec else None,
    )
    if sent is None:
        raise SpecError(
            f"task {asked.task_id} has no shard for you right now.", next_step="See: philab contribute list-tasks --status open"
        )
    for file in write_files(sent.done, experiments=Path(asked.output_dir), geometry=Path(asked.geometry_dir)):
        print(f"wrote {file}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run_experiment", description="Run one experiment, and submit it to a task if asked.")
    what = parser.add_argument_group("what to run").add_mutually_exclusive_group()
    what.add_argument(
        "--spec", metavar="SPEC", help="a spec file (YAML or JSON), or the name of a shipped one; the task's own when left out"
    )
    how = parser.add_argument_group("how")
    add_machine_arguments(how)
    how.add_argument("--geometry-telemetry", action="store_true", help="measure the geometry of the activations as well")
    where = parser.add_argument_group("where to write")
    where.add_argument("--output-dir", default="results/experiments", metavar="DIR", help="default: results/experiments")
    where.add_argument("--geometry-dir", default="results/geometry_viz", metavar="DIR", help="default: results/geometry_viz")
    task = parser.add_argument_group("submitting to a community task")
    task.add_argument("--submit-to", metavar="URL", help="address of the instance")
    task.add_argument("--task-id", metavar="ID", help="the task that the run is for")
    task.add_argument("--api-key", metavar="KEY", help="better: PHILAB_API_KEY, or philab contribute register")
    task.add_argument("--home", type=Path, metavar="DIR", help="folder of key, runs and spool (default: ~/.philab)")
    task.add_argument("--insecure", action="store_true", help="accept http:// to another machine")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
