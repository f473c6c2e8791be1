"""The commands that speak to the database: task, admin, import, demo."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from engine.spec.any import NamedSpec
from engine.spec.reading import read_spec
from scripts import admin, demo, import_, task

if TYPE_CHECKING:
    from db.connection import Database
    from engine.settings import Settings

SPEC = """\
name: Two heads
description: Which heads copy?
spec:
  kind: ablation
  model: {id: planted-induction}
  dataset: {name: planted_induction, rows: {start: 0, stop: 12}}
  metric: target_loss
"""


@pytest.fixture(autouse=True)
def lab(own_settings: "Settings", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands work on the test's own database, from a folder of their own."""
    assert own_settings.database_url is not None
    monkeypatch.setenv("DATABASE_URL", own_settings.database_url)
    monkeypatch.setenv("PHILAB_DATA", str(own_settings.data_dir))
    monkeypatch.setenv("PHILAB_CONFIG", str(own_settings.config_dir))
    work = tmp_path / "work"
    work.mkdir()
    (work / "mine.yaml").write_text(SPEC, encoding="utf-8")
    monkeypatch.chdir(work)
    return work


def test_a_task_is_created_and_listed(capsys: pytest.CaptureFixture[str]):
    assert task.main(["list"]) == 0
    assert "no tasks yet" in capsys.readouterr().out
    assert task.main(["create", "mine.yaml", "--shards", "3", "--replicas", "2", "--delta", "0.1", "--hypothesis", "Two do."]) == 0
    told = capsys.readouterr().out
    assert "open: 3 shards of 4 prompts × 2 replicas" in told
    assert task.main(["list", "--status", "open"]) == 0
    listed = capsys.readouterr().out
    assert UUID(told.split()[1])
    assert told.split()[1] in listed
    assert "0/6" in listed
    assert "Two heads" in listed


def test_a_task_that_cannot_be_is_one_sentence(lab: Path, capsys: pytest.CaptureFixture[str]):
    (lab / "mine.yaml").write_text(SPEC.replace("planted-induction}", "../secret}"), encoding="utf-8")
    assert task.main(["create", "mine.yaml"]) == 1
    assert "names a local folder" in capsys.readouterr().err


def test_a_hosted_instance_wants_to_know_who_creates(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("PHILAB_MODE", "hosted")
    assert task.main(["create", "mine.yaml"]) == 1
    assert "PHILAB_API_KEY" in capsys.readouterr().err
    assert admin.main(["create", "grace"]) == 0
    key = capsys.readouterr().out.split()[-1]
    assert task.main(["create", "mine.yaml", "--api-key", key]) == 0
    assert task.main(["list"]) == 0


def test_an_administrator_is_made_once(own_database: "Database", capsys: pytest.CaptureFixture[str]):
    from sqlalchemy import select

    from db.schema import Contributor

    assert admin.main(["create", "grace", "--email", "grace@example.org"]) == 0
    assert "plk_" in capsys.readouterr().out
    assert admin.main(["create", "grace"]) == 1
    assert "'grace'" in capsys.readouterr().err
    with own_database.session() as session:
        assert session.scalar(select(Contributor.role).where(Contributor.username == "grace")) == "admin"


def test_folders_are_imported_once_however_often(lab: Path, own_database: "Database", capsys: pytest.CaptureFixture[str]):
    from sqlalchemy import func, select

    from db.schema import Run
    from scripts.run import main as run

    assert run(["mine.yaml", "--out", "kept/one", "--device", "cpu"]) == 0
    assert import_.main(["kept"]) == 0
    assert import_.main(["kept/one"]) == 0
    with own_database.session() as session:
        assert session.scalar(select(func.count()).select_from(Run)) == 1
    assert import_.main([str(lab)]) == 1
    assert "holds no run" in capsys.readouterr().err


def test_the_demo_finds_the_planted_heads_twice_and_leaves_nothing(
    lab: Path,
    own_database: "Database",
    own_settings: "Settings",
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    from sqlalchemy import func, select

    from db.schema import Contributor, Finding, Run, Submission, Task

    monkeypatch.setattr(demo, "SHARD_SIZE", 10)  # twice the whole chain, on fewer prompts

    def count(table: type) -> int:
        with own_database.session() as session:
            return session.scalar(select(func.count()).select_from(table)) or 0

    assert task.main(["create", "mine.yaml", "--name", "A task of mine"]) == 0
    for said in ("have registered over HTTP", "are there from an earlier demo"):
        capsys.readouterr()
        assert demo.main([]) == 0
        told = capsys.readouterr().out
        assert said in told
        assert {head for head, status in _statuses(told).items() if status == "candidate"} == {"L0H1", "L1H2"}
        assert set(_statuses(told).values()) == {"candidate", "null"}
        assert "candidate, and not one step higher: 1 hardware class of at least 2" in told
        assert (count(Submission), count(Task)) == (12, 2)
    with (lab / "results" / "demo" / "finding.csv").open(encoding="utf-8") as file:
        assert {row["head"] for row in csv.DictReader(file) if abs(float(row["effect"])) > 1} == {"L0H1", "L1H2"}
    for name in ("finding.png", "finding.svg"):
        assert (lab / "results" / "demo" / name).stat().st_size > 1000

    assert demo.main(["--remove"]) == 0
    assert (count(Submission), count(Run), count(Finding), count(Task), count(Contributor)) == (0, 0, 0, 1, 1)
    assert not any(path.is_dir() for path in (own_settings.data_dir / "demo").iterdir())


def test_the_demo_is_not_for_a_hosted_instance(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("PHILAB_MODE", "hosted")
    assert demo.main([]) == 1
    assert "hosted instance" in capsys.readouterr().err


def test_the_shards_of_the_demo_are_disjoint_equal_and_within_the_dataset():
    from engine.text.datasets import load_dataset

    named = read_spec(demo.SPEC)
    assert isinstance(named, NamedSpec)
    assert len(load_dataset(named.spec.dataset).rows) >= demo.SHARDS * demo.SHARD_SIZE
    assert demo.SHARDS == 6
    assert demo.REPLICAS == 2
    assert len(demo.NAMES) >= 5


def _statuses(told: str) -> dict[str, str]:
    """Head -> status, of the demo's table."""
    words = [line.split() for line in told.splitlines()]
    return {row[0]: row[-1] for row in words if len(row) > 4 and row[0][:1] == "L" and "H" in row[0]}
