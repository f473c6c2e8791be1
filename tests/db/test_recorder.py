import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event, text

from db import runs, states
from db.connection import Database, open_database
from db.embedded import stop_server
from db.recorder import DatabaseRecorder
from db.schema import Artifact, Contributor, Run, RunItem, RunMetric
from db.viewer import Viewer
from engine.errors import Conflict, RunCancelled, StoreError
from engine.settings import Settings
from engine.store import Store
from tests import community

HASH = "a" * 64


@pytest.fixture
def run_id(own_database: Database) -> UUID:
    with own_database.session() as session:
        ada = Contributor(username="ada")
        session.add(ada)
        session.flush()
        run = runs.create_run(session, Viewer(contributor_id=ada.id, role="contributor"), community.SPEC)
        run.job_id = 1
        return run.id


@pytest.fixture
def recorder(own_database: Database, store: Store, run_id: UUID) -> DatabaseRecorder:
    return attempt(own_database, store, run_id)


@pytest.fixture
def begun(recorder: DatabaseRecorder) -> DatabaseRecorder:
    recorder.begin(community.SPEC, community.provenance(community.SPEC, HASH))
    return recorder


def attempt(database: Database, store: Store, run_id: UUID) -> DatabaseRecorder:
    """The next attempt at the run; the ones before are fenced out from now on."""
    with database.session() as session:
        number = runs.claim_run(session, run_id)
    assert number is not None
    return DatabaseRecorder(database, store, run_id=run_id, attempt=number)


def row(database: Database, run_id: UUID) -> Run:
    with database.session() as session:
        return session.get_one(Run, run_id)


def finish(recorder: DatabaseRecorder) -> None:
    recorder.item("p1", {"metric": 1.0, "label": None})
    recorder.item("p2", {"metric": 2.0, "label": "ü"})
    recorder.metric("loss", 0.5, 1)
    recorder.metric("loss", 0.4, 2)
    recorder.artifact("effects.safetensors", b"bytes", "application/octet-stream")
    recorder.finish(community.result(community.SPEC), community.provenance(community.SPEC, HASH))


def count(database: Database) -> list[int]:
    with database.session() as session:
        return [session.query(table).count() for table in (RunItem, RunMetric, Artifact)]


def test_everything_appears_at_the_end_and_not_before(own_database: Database, store: Store, begun: DatabaseRecorder, run_id: UUID):
    begun.item("early", {"metric": 1.0})
    begun.metric("loss", 1.0)
    assert count(own_database) == [0, 0, 0]
    assert row(own_database, run_id).status == "running"
    finish(begun)
    assert count(own_database) == [3, 3, 1]
    run = row(own_database, run_id)
    assert (run.status, run.progress, run.finished_at is not None) == ("ok", 1.0, True)
    assert run.result == community.result(community.SPEC).model_dump(mode="json")
    with own_database.session() as session:
        assert session.scalars(text("select key from run_items order by position")).all() == ["early", "p1", "p2"]
        kept = session.query(Artifact).one()
    assert store.get(kept.sha256) == b"bytes"


def test_a_finish_that_fails_leaves_nothing(own_database: Database, begun: DatabaseRecorder, run_id: UUID):
    begun.item("twice", {})
    begun.item("twice", {})
    with pytest.raises(Exception, match="pk_run_items"):
        finish(begun)
    assert count(own_database) == [0, 0, 0]
    assert row(own_database, run_id).result is None


def test_an_older_attempt_can_write_nothing_any_more(own_database: Database, store: Store, begun: DatabaseRecorder, run_id: UUID):
    newer = attempt(own_database, store, run_id)
    assert begun.cancelled()
    begun.progress(0.9, "late")
    begun.fail(ValueError("late"), "trace")
    with pytest.raises(Conflict, match="taken over by another worker"):
        finish(begun)
    run = row(own_database, run_id)
    assert (run.status, run.progress, run.error) == ("running", 0.0, None)
    finish(newer)
    begun.fail(ValueError("later still"), "trace")
    assert row(own_database, run_id).status == "ok"
    assert count(own_database) == [2, 2, 1]


@contextmanager
def counted_updates(database: Database) -> Iterator[list[str]]:
    seen: list[str] = []

    def note(*call: Any) -> None:
        if call[2].startswith("UPDATE"):
            seen.append(call[2])

    event.listen(database.engine, "before_cursor_execute", note)
    yield seen
    event.remove(database.engine, "before_cursor_execute", note)


def test_progress_is_throttled_and_a_sign_of_life(own_database: Database, begun: DatabaseRecorder, run_id: UUID):
    before = row(own_database, run_id).heartbeat_at
    assert before is not None
    began = time.monotonic()
    with counted_updates(own_database) as updates:
        for step in range(2000):
            begun.progress(step / 2000, f"step {step}")
    assert len(updates) <= 1 + (time.monotonic() - began) / 0.5
    run = row(own_database, run_id)
    assert run.heartbeat_at is not None
    assert run.heartbeat_at > before
    assert 0 <= run.progress < 1
    assert run.progress_message.startswith("step")
    assert run.started_at is not None


@pytest.mark.parametrize("fraction", [-1.0, 2.0, float("nan")])
def test_odd_fractions_break_nothing(own_database: Database, begun: DatabaseRecorder, run_id: UUID, fraction: float):
    begun.progress(fraction, "x" * 10_000)
    assert 0.0 <= row(own_database, run_id).progress <= 1.0


def test_cancel_reaches_the_experiment(own_database: Database, begun: DatabaseRecorder, run_id: UUID):
    assert not begun.cancelled()
    with own_database.session() as session:
        runs.request_cancel(session, Viewer(role="admin"), run_id)
    begun._wrote_at = 0.0  # the throttle's half second is over
    assert begun.cancelled()
    begun.fail(RunCancelled("stopped"), "trace")
    run = row(own_database, run_id)
    assert (run.status, run.traceback, run.finished_at is not None) == ("cancelled", None, True)


def test_a_failure_keeps_its_traceback(own_database: Database, begun: DatabaseRecorder, run_id: UUID):
    begun.item("p1", {})
    begun.fail(ZeroDivisionError("by zero"), "Traceback: here")
    run = row(own_database, run_id)
    assert (run.status, run.error, run.traceback) == ("failed", "by zero", "Traceback: here")
    assert count(own_database) == [0, 0, 0]


def test_text_that_postgres_cannot_hold(own_database: Database, begun: DatabaseRecorder, run_id: UUID):
    begun.progress(0.5, "nul \x00 and lone \ud800")
    begun.fail(ValueError("nul \x00"), "trace \x00 \ud800")
    run = row(own_database, run_id)
    assert run.status == "failed"
    assert "nul" in (run.error or "")


def test_a_restart_of_the_database_is_waited_for(short_folder: Callable[[str], Path], store: Store):
    """The embedded server is killed at each step of a run; the run ends well all the same."""
    folder = short_folder("restart") / "data"
    database = open_database(Settings(data_dir=folder, config_dir=folder))
    try:
        with database.session() as session:
            run_id = runs.create_run(session, Viewer(is_owner=True), community.SPEC).id
        recorder = attempt(database, store, run_id)
        stop_server(folder)
        recorder.begin(community.SPEC, community.provenance(community.SPEC, HASH))
        stop_server(folder)
        recorder._wrote_at = 0.0
        recorder.progress(0.5, "half")
        stop_server(folder)
        finish(recorder)
        assert row(database, run_id).status == "ok"
    finally:
        database.close()


def stored(store: Store, tmp_path: Path) -> list[bytes]:
    return sorted(file.read_bytes() for file in (tmp_path / "data" / "store").rglob("*") if file.is_file())


def test_a_state_is_there_for_the_next_attempt_and_gone_at_the_end(
    own_database: Database, store: Store, begun: DatabaseRecorder, run_id: UUID, tmp_path: Path
):
    assert begun.saved() is None
    begun.save(b"one")
    begun.save(b"two")
    assert stored(store, tmp_path) == [b"two"]
    newer = attempt(own_database, store, run_id)
    assert newer.saved() == b"two"
    newer.save(b"two")
    assert newer.saved() == b"two"
    finish(newer)
    assert row(own_database, run_id).state_sha256 is None
    assert stored(store, tmp_path) == [b"bytes"]


def test_an_older_attempt_keeps_and_sees_no_state(
    own_database: Database, store: Store, begun: DatabaseRecorder, run_id: UUID, tmp_path: Path
):
    newer = attempt(own_database, store, run_id)
    newer.save(b"new")
    begun.save(b"old")
    assert begun.saved() is None
    assert newer.saved() == b"new"
    assert stored(store, tmp_path) == [b"new"]


def test_a_cancelled_run_keeps_its_state_for_a_retry(own_database: Database, store: Store, begun: DatabaseRecorder, run_id: UUID):
    begun.save(b"state")
    begun.fail(RunCancelled("stopped"), "trace")
    with own_database.session() as session:
        runs.retry_run(session, Viewer(role="admin"), run_id)
    assert attempt(own_database, store, run_id).saved() == b"state"


def test_two_runs_with_the_same_state_do_not_take_it_from_each_other(
    own_database: Database, store: Store, begun: DatabaseRecorder, run_id: UUID
):
    with own_database.session() as session:
        twin = runs.create_run(session, Viewer(is_owner=True), community.SPEC).id
    other = attempt(own_database, store, twin)
    begun.save(b"same")
    other.save(b"same")
    finish(begun)
    assert other.saved() == b"same"
    other.artifact("same.bin", b"an artefact", "application/octet-stream")
    other.save(b"bytes")  # the same bytes as the artefact of the run that is done
    finish(other)
    assert store.exists(hashlib.sha256(b"bytes").hexdigest())
    assert not store.exists(hashlib.sha256(b"same").hexdigest())


def test_a_state_that_the_store_has_lost_is_no_state(own_database: Database, store: Store, begun: DatabaseRecorder):
    begun.save(b"state")
    store.remove(hashlib.sha256(b"state").hexdigest())
    assert begun.saved() is None


def test_states_of_runs_that_were_given_up_are_forgotten(
    own_database: Database, store: Store, begun: DatabaseRecorder, run_id: UUID, tmp_path: Path
):
    begun.save(b"state")
    begun.fail(RunCancelled("stopped"), "trace")
    for days, left in ((1, [b"state"]), (40, [])):
        with own_database.session() as session:
            session.execute(text("update runs set finished_at = now() - make_interval(days => :days)"), {"days": days})
            states.drop(session, store, states.forget_old(session))
        assert stored(store, tmp_path) == left
    assert row(own_database, run_id).state_sha256 is None


def test_deleting_a_run_names_the_state_that_nobody_needs(
    own_database: Database, store: Store, begun: DatabaseRecorder, run_id: UUID, tmp_path: Path
):
    begun.save(b"state")
    begun.fail(RunCancelled("stopped"), "trace")
    with own_database.session() as session:
        left_over = runs.delete_run(session, Viewer(role="admin"), run_id)
        states.drop(session, store, [left_over])
    assert stored(store, tmp_path) == []


def test_a_full_store_is_told_as_such(own_database: Database, run_id: UUID, tmp_path):
    (tmp_path / "store").write_text("a file where the folder should be")
    recorder = attempt(own_database, Store(tmp_path / "store"), run_id)
    with pytest.raises(StoreError, match="cannot be written"):
        recorder.artifact("a.bin", b"x", "application/octet-stream")


def test_a_cancelled_run_is_not_claimed(own_database: Database, run_id: UUID):
    with own_database.session() as session:
        runs.request_cancel(session, Viewer(role="admin"), run_id)
        assert runs.claim_run(session, run_id) is None
