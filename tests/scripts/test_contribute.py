"""The commands of contributors against a real instance on a real port, with a real database and a real model."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engine.folder import read_folder
from scripts import run_experiment
from scripts.contribute import main
from scripts.serving import free_port

if TYPE_CHECKING:
    from db.connection import Database
    from engine.settings import Settings

SPEC = """\
kind: ablation
model: {id: planted-induction}
dataset: {name: planted_induction, rows: {start: 0, stop: 12}}
metric: target_loss
"""

Command = Callable[..., int]


@pytest.fixture
def instance(own_database: "Database", own_settings: "Settings") -> Iterator[str]:
    """The address of an instance that serves the API alone."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.routing import Mount

    from app.api import create_api
    from app.services import Services
    from engine.store import Store

    running = Services(settings=own_settings, database=own_database, store=Store(own_settings.data_dir / "store"), owner=None, worker=None)
    port = free_port()
    api = Starlette(routes=[Mount("/api", app=create_api(lambda: running))])
    server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def task(own_database: "Database", own_settings: "Settings") -> str:
    """A task of three shards with two replicas each."""
    from db.contributors import ensure_owner
    from db.tasks import TaskDraft, create_task

    with own_database.session() as session:
        owner = ensure_owner(session, own_settings)
        draft = TaskDraft(name="Which heads copy?", spec_yaml=SPEC, n_shards=3, shard_size=4, replicas=2)
        return str(create_task(session, owner, draft).id)


@pytest.fixture
def contribute(instance: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command as a person with a folder of their own."""
    monkeypatch.setenv("PHILAB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PHILAB_CONFIG", str(tmp_path / "config"))
    monkeypatch.delenv("PHILAB_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    return lambda name, *argv: main(["--url", instance, "--home", str(tmp_path / "people" / name), *argv])


def registered(contribute: Command, name: str) -> dict[str, Any]:
    assert contribute(name, "register", "--username", name, "--email", f"{name}@example.org") == 0
    return {}


def test_the_whole_turn_of_a_contributor(
    contribute: Command, task: str, own_database: "Database", tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    registered(contribute, "ada")
    told = capsys.readouterr().out
    identity = json.loads((tmp_path / "people" / "ada" / "config.json").read_text(encoding="utf-8"))
    assert identity["api_key"] in told

    assert contribute("ada", "list-tasks", "--status", "open") == 0
    assert task in capsys.readouterr().out

    assert contribute("ada", "run", "--task-id", task, "--preset", "gpu_starter", "--geometry-telemetry") == 0
    told = capsys.readouterr().out
    assert told.index("becomes public") < told.index("largest")
    assert "L0H1" in told
    assert "(waiting)" in told
    assert "See http" in told

    assert contribute("ada", "my-runs") == 0
    assert "waiting" in capsys.readouterr().out
    assert contribute("ada", "sync") == 0
    assert "Nothing waits" in capsys.readouterr().out

    registered(contribute, "bela")
    assert contribute("bela", "run", "--shards", "5", "--device", "cpu") == 0
    assert "no further shard" in capsys.readouterr().out
    assert contribute("bela", "leaderboard") == 0
    assert "1. " in capsys.readouterr().out

    from sqlalchemy import select

    from db.schema import RunPayload, Submission

    with own_database.session() as session:
        sent = session.scalars(select(Submission)).all()
        telemetry = session.scalars(select(RunPayload).where(RunPayload.name == "telemetry")).all()
        assert sorted(one.verdict for one in sent) == ["accepted", "accepted", "waiting", "waiting"]
        assert {one.preset_used for one in sent} == {"gpu_starter", None}
        assert len(telemetry) == 1


def test_a_preset_that_would_cut_the_shard_is_refused(contribute: Command, task: str, capsys: pytest.CaptureFixture[str]):
    registered(contribute, "ada")
    assert contribute("ada", "run", "--task-id", task, "--preset", "cpu_sanity") == 1
    assert "2 of 4 heads, but a shard counts as a whole" in capsys.readouterr().err


def test_a_finished_run_that_was_not_sent_is_not_run_again(
    contribute: Command, task: str, instance: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from scripts.community import Community
    from scripts.contributor_home import ContributorHome
    from scripts.execution import execute
    from scripts.shard import lease_shard

    registered(contribute, "ada")
    home = ContributorHome(tmp_path / "people" / "ada")
    identity = home.identity()
    assert identity is not None
    shard = lease_shard(Community(instance, identity.api_key), task)
    assert shard is not None
    before = execute(shard.named, home.runs() / str(shard.lease_id), device="cpu", stop=threading.Event())

    assert contribute("ada", "run", "--task-id", task) == 0
    runs = [*home.runs().iterdir()]
    assert [read_folder(folder).id for folder in runs] == [read_folder(before.folder).id]
    assert "(waiting)" in capsys.readouterr().out


def test_an_experiment_of_ones_own_is_submitted_when_it_asks_the_same(
    contribute: Command, task: str, instance: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    registered(contribute, "ada")
    (tmp_path / "mine.yaml").write_text(SPEC, encoding="utf-8")
    (tmp_path / "other.yaml").write_text(SPEC.replace("target_loss", "loss"), encoding="utf-8")
    flags = ["--submit-to", instance, "--task-id", task, "--home", str(tmp_path / "people" / "ada")]
    capsys.readouterr()

    assert run_experiment.main(["--spec", "other.yaml", *flags]) == 1
    assert "asks another question" in capsys.readouterr().err
    assert run_experiment.main(["--spec", "mine.yaml", *flags]) == 0
    told = capsys.readouterr().out
    assert "Sent: " in told
    assert len([*(tmp_path / "results" / "experiments").glob("*.json")]) == 1


def test_without_registration_nothing_is_run(contribute: Command, task: str, capsys: pytest.CaptureFixture[str]):
    assert contribute("ada", "run", "--task-id", task) == 1
    assert "Register first" in capsys.readouterr().err


def test_a_name_that_is_taken_is_said(contribute: Command, capsys: pytest.CaptureFixture[str]):
    registered(contribute, "ada")
    assert contribute("other", "register", "--username", "ada", "--email", "x@example.org") == 1
    assert "'ada'" in capsys.readouterr().err


def test_without_tasks_there_is_nothing_to_do(contribute: Command, capsys: pytest.CaptureFixture[str]):
    registered(contribute, "ada")
    assert contribute("ada", "run") == 0
    assert contribute("ada", "list-tasks") == 0
    assert contribute("ada", "my-runs") == 0
    assert contribute("ada", "leaderboard") == 0
    told = capsys.readouterr().out
    for sentence in ("no shard for you", "No tasks at", "sent nothing", "Nobody has an accepted run"):
        assert sentence in told
