"""Real workers, real runs of the planted model, real kills. Slow runs draw 32 times per head; quick ones take half a second."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, make_url, select, text, update
from sqlalchemy.orm import Session

from db import leases, runs
from db.connection import Database, open_database
from db.embedded import stop_server
from db.queue import BACKGROUND, enqueue, forget_ended, rescue_stalled
from db.schema import Artifact, Lease, Run, RunItem, Submission
from db.viewer import Viewer
from db.work import LOST, MAX_ATTEMPTS, start_run, start_worker
from engine.errors import DatabaseUnavailable
from engine.settings import Settings
from engine.spec import AnySpec, parse_spec
from engine.store import Store
from tests import community

ROOT = Path(__file__).resolve().parents[2]
ROWS = 48
OWNER = Viewer(is_owner=True)


def planted(**more: Any) -> AnySpec:
    rows = {"start": 0, "stop": ROWS}
    dataset = {"name": "planted_induction", "rows": rows}
    return parse_spec({"kind": "ablation", "model": {"id": "planted-induction"}, "dataset": dataset, "metric": "target_loss", **more})


QUICK = planted(limits={"records": 4})
REFERENCE = {"name": "planted_induction", "rows": {"start": 64, "stop": 128}}
SLOW = planted(mode="resample", reference=REFERENCE, seeds=list(range(32)))
LONG = planted(mode="resample", reference=REFERENCE, seeds=list(range(8)))
BROKEN = planted(dataset={"path": "/nowhere/at/all.jsonl"})


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def queue(database: Database, spec: AnySpec, **more: Any) -> UUID:
    with database.session() as session:
        return start_run(session, OWNER, spec, **more).id


def look(database: Database, run_id: UUID) -> Run:
    with database.session() as session:
        return session.get_one(Run, run_id)


def wait_for(condition: Callable[[], bool], *, what: str, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.05)


def wait_until(database: Database, run_id: UUID, status: str, *, progress: float = 0.0) -> Run:
    def reached() -> bool:
        run = look(database, run_id)
        assert run.status == status or run.finished_at is None, f"{run.status}: {run.error}\n{run.traceback}"
        return run.status == status and run.progress >= progress

    wait_for(reached, what=f"{status} at {progress}")
    return look(database, run_id)


@contextmanager
def worker(database: Database, settings: Settings, *, stalled_s: float = 30.0) -> Generator[Thread]:
    """A worker in a thread, as the web process has it."""
    stop, ready = Event(), Event()
    kept = {"stop": stop, "stalled_s": stalled_s, "on_ready": ready.set}
    thread = Thread(target=start_worker, args=(database, settings), kwargs=kept)
    thread.start()
    try:
        assert ready.wait(20)
        yield thread
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()


class Process:
    """`philab worker` as a process of its own."""

    def __init__(self, settings: Settings, *, stalled_s: float = 2.0, keep_every_s: float | None = None) -> None:
        assert settings.database_url is not None
        places = {"PHILAB_DATA": str(settings.data_dir), "PHILAB_CONFIG": str(settings.config_dir), "DATABASE_URL": settings.database_url}
        code = f"import engine.experiments.measuring as m; m.KEEP_EVERY_S = {keep_every_s}; from scripts.worker import main; main()"
        start = ["-m", "scripts.worker"] if keep_every_s is None else ["-c", code]
        command = [sys.executable, *start, "--stalled-s", str(stalled_s)]
        environment = {**os.environ, **places, "OMP_NUM_THREADS": "1"}
        self.popen = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def ended(self) -> tuple[int, str]:
        _, errors = self.popen.communicate(timeout=60)
        return self.popen.returncode, errors


@pytest.fixture
def process(own_settings: Settings) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(settings: Settings = own_settings, **more: Any) -> Process:
        started.append(Process(settings, **more))
        return started[-1]

    yield start
    for one in started:
        if one.popen.poll() is None:
            one.popen.kill()
        one.popen.communicate()


def rows_of(database: Database, run_id: UUID) -> tuple[int, int]:
    with database.session() as session:
        found = [session.query(table).filter_by(run_id=run_id).count() for table in (RunItem, Artifact)]
    return found[0], found[1]


def kept_files(settings: Settings) -> set[str]:
    """Hashes of all that is in the store."""
    return {file.name for file in (settings.data_dir / "store").rglob("*") if file.is_file()}


def test_a_run_is_done_and_kept(own_database: Database, own_settings: Settings, store: Store):
    run_id = queue(own_database, QUICK, name="quick")
    assert look(own_database, run_id).status == "queued"
    with worker(own_database, own_settings):
        run = wait_until(own_database, run_id, "ok")
    assert run.result is not None
    assert run.provenance is not None
    assert (run.attempt, run.progress, run.error) == (1, 1.0, None)
    assert rows_of(own_database, run_id) == (4, len(run.result["artifacts"]))
    for kept in run.result["artifacts"]:
        assert len(store.get(kept["sha256"])) == kept["size_bytes"]


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(100))
def test_killed_at_any_moment_every_run_ends_once(own_database: Database, process: Callable[..., Process], seed: int):
    """Twelve quick runs, and a worker that is killed at random moments until they are done."""
    draw, ids = random.Random(seed), [queue(own_database, QUICK) for _ in range(12)]
    while any(look(own_database, run_id).status in ("queued", "running") for run_id in ids):
        victim = process(stalled_s=1.0)
        time.sleep(draw.uniform(0.5, 8.0))
        victim.signal(signal.SIGKILL)
        victim.ended()
    for run_id in ids:
        run = look(own_database, run_id)
        whole = run.status == "ok" and run.result is not None and rows_of(own_database, run_id) == (4, len(run.result["artifacts"]))
        assert whole or (run.error == LOST and rows_of(own_database, run_id) == (0, 0)), f"{run.status}: {run.error}"


def test_a_killed_worker_loses_little_and_leaves_nothing_half_written(
    own_database: Database, own_settings: Settings, process: Callable[..., Process], store: Store
):
    run_id = queue(own_database, SLOW)
    first = process(keep_every_s=0.1)
    wait_until(own_database, run_id, "running", progress=0.2)
    first.signal(signal.SIGKILL)
    first.ended()
    run = look(own_database, run_id)
    assert (run.status, run.result, rows_of(own_database, run_id)) == ("running", None, (0, 0))
    assert run.state_sha256 is not None
    assert store.exists(run.state_sha256)
    process()
    run = wait_until(own_database, run_id, "ok")
    assert run.result is not None
    assert run.attempt == 2
    assert rows_of(own_database, run_id) == (ROWS, len(run.result["artifacts"]))
    assert "The run was stopped and went on later" in run.result["notes"][-1]
    assert kept_files(own_settings) == {artifact["sha256"] for artifact in run.result["artifacts"]}


def test_a_frozen_worker_that_wakes_up_changes_nothing(own_database: Database, process: Callable[..., Process]):
    run_id = queue(own_database, SLOW)
    frozen = process()
    wait_until(own_database, run_id, "running", progress=0.1)
    frozen.signal(signal.SIGSTOP)
    process()
    wait_for(lambda: look(own_database, run_id).attempt == 2, what="the run is taken over")
    frozen.signal(signal.SIGCONT)
    run = wait_until(own_database, run_id, "ok")
    assert run.result is not None
    assert run.attempt == 2
    assert rows_of(own_database, run_id) == (ROWS, len(run.result["artifacts"]))


def test_a_stopped_worker_puts_its_run_back(own_database: Database, own_settings: Settings, process: Callable[..., Process]):
    run_id = queue(own_database, SLOW)
    first = process(stalled_s=30.0)
    before = wait_until(own_database, run_id, "running", progress=0.1)
    first.signal(signal.SIGTERM)
    code, errors = first.ended()
    assert code == 0, errors
    run = look(own_database, run_id)
    assert (run.status, run.progress, run.result) == ("queued", 0.0, None)
    assert run.job_id != before.job_id
    with worker(own_database, own_settings):
        run = wait_until(own_database, run_id, "ok")
    assert run.attempt == 2
    went_on = re.fullmatch(r"The run was stopped and went on later; (\d+)% had been measured before\.", run.result["notes"][-1])
    assert went_on is not None
    assert int(went_on[1]) >= 9


def test_a_cancelled_run_goes_on_when_it_is_tried_again(own_database: Database, own_settings: Settings):
    run_id, whole = queue(own_database, LONG), queue(own_database, LONG)
    with worker(own_database, own_settings):
        wait_until(own_database, run_id, "running", progress=0.2)
        with own_database.session() as session:
            runs.request_cancel(session, OWNER, run_id)
        wait_until(own_database, run_id, "cancelled")
        with own_database.session() as session:
            enqueue(session, runs.retry_run(session, OWNER, run_id))
        again, expected = wait_until(own_database, run_id, "ok"), wait_until(own_database, whole, "ok")
    assert "went on later" in again.result["notes"][-1]
    assert again.result["effects"]["estimate"] == pytest.approx(expected.result["effects"]["estimate"], abs=1e-6)
    assert kept_files(own_settings) == {artifact["sha256"] for run in (again, expected) for artifact in run.result["artifacts"]}


def test_cancel_stops_a_run_and_the_worker_goes_on(own_database: Database, own_settings: Settings):
    slow, queued, quick = queue(own_database, SLOW), queue(own_database, QUICK), queue(own_database, QUICK)
    with own_database.session() as session:
        runs.request_cancel(session, OWNER, queued)
    with worker(own_database, own_settings):
        wait_until(own_database, slow, "running", progress=0.05)
        asked = time.monotonic()
        with own_database.session() as session:
            runs.request_cancel(session, OWNER, slow)
        run = wait_until(own_database, slow, "cancelled")
        assert time.monotonic() - asked < 10
        wait_until(own_database, quick, "ok")
    assert (run.result, run.traceback, rows_of(own_database, slow)) == (None, None, (0, 0))
    assert look(own_database, queued).status == "cancelled"
    assert look(own_database, queued).attempt == 0


def test_two_workers_share_the_queue_and_the_device(own_database: Database, own_settings: Settings):
    ids = [queue(own_database, planted(limits={"records": 20})) for _ in range(6)]
    with worker(own_database, own_settings), worker(own_database, own_settings):
        done = [wait_until(own_database, run_id, "ok") for run_id in ids]
    assert [run.attempt for run in done] == [1] * 6
    spans = sorted((run.started_at, run.finished_at) for run in done if run.started_at and run.finished_at)
    assert len(spans) == 6
    assert all(ended <= began for (_, ended), (began, _) in pairwise(spans)), spans


def test_interactive_runs_come_first(own_database: Database, own_settings: Settings):
    later, sooner = queue(own_database, QUICK, priority=BACKGROUND), queue(own_database, QUICK)
    with worker(own_database, own_settings):
        done = [wait_until(own_database, run_id, "ok") for run_id in (sooner, later)]
    assert done[0].started_at is not None
    assert done[1].started_at is not None
    assert done[0].started_at < done[1].started_at


def test_a_run_that_fails_says_why_and_is_not_repeated(own_database: Database, own_settings: Settings):
    run_id = queue(own_database, BROKEN)
    with worker(own_database, own_settings):
        run = wait_until(own_database, run_id, "failed")
    assert (run.attempt, run.result) == (1, None)
    assert "/nowhere/at/all.jsonl" in (run.error or "")
    assert "Traceback" in (run.traceback or "")


def test_a_run_that_kills_its_workers_is_given_up(own_database: Database, own_settings: Settings):
    run_id = queue(own_database, QUICK)
    with own_database.session() as session:
        session.execute(text("update procrastinate_jobs set attempts = :n"), {"n": MAX_ATTEMPTS})
    with worker(own_database, own_settings):
        run = wait_until(own_database, run_id, "failed")
    assert run.error == LOST


def test_a_cancelled_and_retried_run_has_one_job_that_counts(own_database: Database, own_settings: Settings):
    run_id = queue(own_database, QUICK)
    with own_database.session() as session:
        runs.request_cancel(session, OWNER, run_id)
        enqueue(session, runs.retry_run(session, OWNER, run_id))
    with worker(own_database, own_settings):
        run = wait_until(own_database, run_id, "ok")
        wait_for(lambda: _waiting(own_database) == 0, what="the older job is used up")
    assert run.attempt == 1


def _waiting(database: Database) -> int:
    with database.session() as session:
        return session.scalar(text("select count(*) from procrastinate_jobs where status in ('todo', 'doing')")) or 0


def test_a_job_comes_and_goes_with_its_transaction(own_database: Database):
    with own_database.session() as session:
        start_run(session, OWNER, QUICK)
        session.rollback()
    assert _waiting(own_database) == 0


def test_rescue_takes_from_the_silent_only_and_once(session: Session):
    session.execute(text("insert into procrastinate_workers (last_heartbeat) values (now()), (now() - interval '1 hour')"))
    insert = "insert into procrastinate_jobs (queue_name, task_name, status, worker_id) "
    session.execute(text(insert + "select 'runs', 'run_spec', 'doing'::procrastinate_job_status, id from procrastinate_workers"))
    session.execute(text(insert + "values ('runs', 'run_spec', 'doing', null)"))
    assert len(rescue_stalled(session, stalled_s=30)) == 2
    assert rescue_stalled(session, stalled_s=30) == []
    found = session.execute(text("select status::text, count(*) from procrastinate_jobs group by 1 order by 1")).all()
    assert [tuple(row) for row in found] == [("doing", 1), ("todo", 2)]


def test_old_jobs_are_forgotten(session: Session):
    session.execute(text("insert into procrastinate_jobs (queue_name, task_name) values ('runs', 'x'), ('runs', 'x'), ('runs', 'x')"))
    for status in ("doing", "succeeded"):
        session.execute(text(f"update procrastinate_jobs set status = '{status}' where id % 3 <> 0"))
    session.execute(text("update procrastinate_events set at = now() - interval '8 days' where job_id % 3 = 1"))
    forget_ended(session)
    assert session.scalars(text("select id % 3 from procrastinate_jobs order by 1")).all() == [0, 2]


def test_a_worker_and_its_run_outlive_a_restart_of_the_embedded_server(short_folder: Callable[[str], Path]):
    folder = short_folder("work") / "data"
    settings = Settings(data_dir=folder, config_dir=folder)
    database = open_database(settings)
    try:
        with worker(database, settings, stalled_s=8.0) as thread:
            run_id = queue(database, SLOW)
            wait_until(database, run_id, "running", progress=0.1)
            stop_server(folder)
            run = wait_until(database, run_id, "ok")
            quick = queue(database, QUICK)
            wait_until(database, quick, "ok")
            assert thread.is_alive()
    finally:
        database.close()
    assert run.attempt == 1


def test_a_worker_without_its_database_ends_with_75(short_folder: Callable[[str], Path], process: Callable[..., Process]):
    folder = short_folder("gone") / "data"
    database = open_database(Settings(data_dir=folder, config_dir=folder))
    try:
        lonely = process(Settings(database_url=database.url_text, data_dir=folder / "own", config_dir=folder), stalled_s=1.0)
        assert lonely.popen.stdout is not None
        assert lonely.popen.stdout.readline() == "worker ready\n"
        stop_server(folder)
        code, errors = lonely.ended()
    finally:
        database.close()
    assert code == 75
    assert "philab worker: the worker lost the database." in errors
    assert "Traceback" not in errors


def test_no_database_no_worker(own_settings: Settings):
    nowhere = Database(make_url("postgresql+psycopg://u@127.0.0.1:1/none"))
    with pytest.raises(DatabaseUnavailable, match="cannot be reached"):
        start_worker(nowhere, own_settings, stop=Event())


@pytest.fixture
def leased(own_database: Database) -> tuple[Viewer, leases.Lease]:
    """A person with a shard of a task that the planted model can answer."""
    with own_database.session() as session:
        ada, admin = community.join(session, "ada"), Viewer(contributor_id=community.join(session, "grace").contributor_id, role="admin")
        task = community.make_task(session, admin, spec=planted().model_dump(mode="json"), n_shards=6)
        return ada, community.lease_shard(session, ada, task.id)


def run_here(database: Database, ada: Viewer, lease: leases.Lease, spec: AnySpec) -> UUID:
    with database.session() as session:
        return start_run(session, ada, spec, task_id=lease.task_id, lease_id=lease.id).id


def lease_state(database: Database, lease: leases.Lease) -> str | None:
    with database.session() as session:
        return session.scalar(select(Lease.state).where(Lease.id == lease.id))


def test_a_run_for_a_task_is_submitted_once(own_database: Database, own_settings: Settings, leased: tuple[Viewer, leases.Lease]):
    ada, lease = leased
    run_id = run_here(own_database, ada, lease, lease.spec)
    with worker(own_database, own_settings):
        wait_until(own_database, run_id, "ok")
        wait_for(lambda: lease_state(own_database, lease) == "submitted", what="the run is submitted")
        with own_database.session() as session:  # as after a kill between the end of the run and the end of its job
            enqueue(session, session.get_one(Run, run_id))
        wait_for(lambda: _waiting(own_database) == 0, what="the second job is done")
    with own_database.session() as session:
        [sent] = session.scalars(select(Submission)).all()
    assert (sent.run_id, sent.verdict) == (run_id, "waiting")
    assert look(own_database, run_id).visibility == "public"


def test_a_run_that_fails_gives_its_shard_back(own_database: Database, own_settings: Settings, leased: tuple[Viewer, leases.Lease]):
    ada, lease = leased
    run_id = run_here(own_database, ada, lease, BROKEN)
    with worker(own_database, own_settings):
        wait_until(own_database, run_id, "failed")
        wait_for(lambda: lease_state(own_database, lease) == "released", what="the shard is free")


def test_the_lease_of_a_run_at_work_does_not_run_out(own_database: Database, own_settings: Settings, leased: tuple[Viewer, leases.Lease]):
    ada, lease = leased
    run_id = run_here(own_database, ada, lease, SLOW)
    with worker(own_database, own_settings, stalled_s=2.0):
        wait_until(own_database, run_id, "running", progress=0.05)
        with own_database.session() as session:
            soon = update(Lease).values(expires_at=func.now() + text("interval '1 second'")).returning(Lease.expires_at)
            before = session.scalar(soon)
        assert before is not None
        wait_for(lambda: _expiry(own_database, lease) > before, what="the lease is renewed")
    assert lease_state(own_database, lease) == "leased"


def _expiry(database: Database, lease: leases.Lease) -> datetime:
    with database.session() as session:
        return session.get_one(Lease, lease.id).expires_at
