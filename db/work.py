"""Workers: who does the long work, and what happens when they die. The one module of `db` that runs the engine.

A worker that is killed gives no sign of life any more; after `stalled_s` any other one (or the same after its restart) takes the run over
with a higher attempt number, goes on from what was kept last, and whatever the old one still writes is refused. Nothing of a run
counts before its last step.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
from filelock import FileLock, Timeout
from procrastinate import App, BaseRetryStrategy, JobContext, PsycopgConnector, RetryDecision
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from db import states
from db.connection import CONNECT_ARGUMENTS, Database
from db.queue import INTERACTIVE, RUN_SPEC, RUNS, enqueue, forget_ended, rescue_stalled
from db.recorder import DatabaseRecorder
from db.runs import claim_run, create_run, spec_of
from db.schema import Contributor, Run
from db.viewer import Viewer
from engine.errors import DatabaseUnavailable, LabError, RunCancelled
from engine.settings import Settings
from engine.spec import AnySpec
from engine.store import Store

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3  # of one job: losses of its worker or of the database
STALLED_S = 30.0
POLL_S = 0.5
FORGET_EVERY = 10_000  # rounds of upkeep

LOST = f"its worker was lost {MAX_ATTEMPTS} times while it did this run; it may need more memory than there is."


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a worker has at hand.

    Attributes:
        stop: set when the worker should leave; a run at work is put back into the queue.
        stalled_s: a worker that gave no sign of life for so long is dead.
        leases: of the run at work, kept alive while it lasts.
    """

    database: Database
    store: Store
    settings: Settings
    stop: threading.Event
    stalled_s: float
    leases: dict[UUID, Viewer] = field(default_factory=dict[UUID, Viewer])


class _TryAgain(BaseRetryStrategy):
    """Only a lost database is worth another try; everything else would end the same way again."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        if not _passes(exception) or job.attempts + 1 >= MAX_ATTEMPTS:
            return None
        return RetryDecision(retry_in={"seconds": 2 ** (job.attempts + 1)})


def _passes(error: BaseException) -> bool:
    return isinstance(error, DatabaseUnavailable)


def start_run(session: Session, viewer: Viewer, spec: AnySpec, *, priority: int = INTERACTIVE, **more: Any) -> Run:
    """A new run that is queued for the workers; `more` as in `db.runs.create_run`.

    Raises:
        NotAllowed: the viewer may not start runs.
    """
    run = create_run(session, viewer, spec, **more)
    enqueue(session, run, priority=priority)
    return run


def do_run(work: Work, job: Job, run_id: UUID) -> None:
    """Does the run of a job. Doing it twice, or after it is over, changes nothing."""
    run = _claimed(work, job, run_id)
    if run is not None:
        _execute(work, job, run)
    _settle_lease(work, run_id)


def _claimed(work: Work, job: Job, run_id: UUID) -> Run | None:
    """The run, marked as ours; None if it is over or another job's."""
    with work.database.session() as session:
        attempt = claim_run(session, run_id, job_id=job.id)
        if attempt is None:
            return None
        run = session.get_one(Run, run_id)
        if job.attempts >= MAX_ATTEMPTS:
            run.status, run.error, run.finished_at = "failed", LOST, session.scalar(select(func.now()))
            return None
        return run


def _execute(work: Work, job: Job, run: Run) -> None:
    from engine.runner import run as run_engine

    def retried(error: BaseException) -> bool:
        return _passes(error) and job.attempts + 1 < MAX_ATTEMPTS

    recorder = DatabaseRecorder(work.database, work.store, run_id=run.id, attempt=run.attempt, stopping=work.stop.is_set, retried=retried)
    told = {"action": "run_ended", "run_id": str(run.id)}
    try:
        with _lease_kept(work, run), _device(work, recorder):
            run_engine(spec_of(run), recorder, settings=work.settings, preset=run.preset)
    except RunCancelled:
        if recorder.put_back:
            _put_back(work, run)
        logger.info("run stopped", extra=told)
    except DatabaseUnavailable:
        raise  # the queue tries again, later each time
    except LabError as wrong:
        logger.info("run failed: %s", wrong, extra=told)  # the run itself says so
    except Exception:
        logger.exception("run failed", extra=told)


def _put_back(work: Work, run: Run) -> None:
    """Queues a run again that a leaving worker has stopped, as a new job."""
    with work.database.session() as session:
        mine = (Run.id == run.id, Run.attempt == run.attempt, Run.status == "running", Run.cancel_requested.is_(False))
        values = {"status": "queued", "progress": 0.0, "progress_message": "the worker was stopped; another one takes over"}
        waiting = session.scalar(update(Run).where(*mine).values(**values).returning(Run))
        if waiting is not None:
            enqueue(session, waiting)


@contextmanager
def _device(work: Work, recorder: DatabaseRecorder) -> Generator[None]:
    """One heavy run at a time on each device of this machine; who waits says so, and can be cancelled."""
    work.settings.data_dir.mkdir(parents=True, exist_ok=True)
    visible = "".join(letter if letter.isalnum() else "-" for letter in os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    lock = FileLock(work.settings.data_dir / f"device{visible and '-'}{visible}.lock", thread_local=False)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=POLL_S)
        except Timeout:
            recorder.progress(0.0, "waiting: another run has the device")
            if recorder.cancelled():
                stopped = RunCancelled("the run was stopped while it waited for the device.")
                recorder.fail(stopped, "")
                raise stopped from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _lease_kept(work: Work, run: Run) -> Generator[None]:
    viewer = _owner(work, run)
    if run.lease_id is not None and viewer is not None:
        work.leases[run.lease_id] = viewer
    try:
        yield
    finally:
        work.leases.clear()


def _owner(work: Work, run: Run) -> Viewer | None:
    if run.owner_id is None:
        return None
    with work.database.session() as session:
        role = session.scalar(select(Contributor.role).where(Contributor.id == run.owner_id))
    return Viewer(contributor_id=run.owner_id, role=role)


def _settle_lease(work: Work, run_id: UUID) -> None:
    """Submits a run that was made for a task, once; gives the shard back if it failed."""
    from db.leases import release
    from db.submissions import submit_run

    with work.database.session() as session:
        run = session.get(Run, run_id)
    viewer = _owner(work, run) if run is not None else None
    if run is None or viewer is None or run.lease_id is None:
        return
    try:
        with work.database.session() as session:
            if run.status == "ok":
                submit_run(session, viewer, run_id)
            elif run.status in ("failed", "cancelled"):
                release(session, viewer, run.lease_id)
    except DatabaseUnavailable:
        raise
    except LabError as refused:
        if run.status == "ok":
            _tell(work, run_id, f"done, but not submitted: {refused}")


def _tell(work: Work, run_id: UUID, message: str) -> None:
    with work.database.session() as session:
        session.execute(update(Run).where(Run.id == run_id).values(progress_message=message[:500]))


def keep_up(work: Work) -> None:
    """One round of what somebody has to do now and then; any number of workers may do it at once."""
    from db.leases import expire_due, renew

    for lease_id, viewer in list(work.leases.items()):
        with suppress(LabError), work.database.session() as session:
            renew(session, viewer, lease_id)
    with work.database.session() as session:
        rescue_stalled(session, stalled_s=work.stalled_s)
    with work.database.session() as session:
        expire_due(session)


def start_worker(
    database: Database,
    settings: Settings,
    *,
    stop: threading.Event,
    stalled_s: float = STALLED_S,
    on_ready: Callable[[], None] | None = None,
) -> None:
    """Works until `stop` is set. Call it in a thread of its own, or as a process' main work.

    Args:
        database: where the queue is.
        settings: where models and artefacts are.
        stop: ends the work; the run at hand goes back into the queue.
        stalled_s: a worker silent for so long is taken for dead.
        on_ready: called when jobs are being taken.

    Raises:
        DatabaseUnavailable: the database went away; call again later.
    """
    database.check()
    store = Store(settings.store or settings.data_dir / "store")
    work = Work(database=database, store=store, settings=settings, stop=stop, stalled_s=stalled_s)
    reason: BaseException | None = None
    try:
        asyncio.run(_work(work, on_ready))
    except (ConnectorException, psycopg.Error, OSError) as lost:
        reason = lost
    if not stop.is_set():
        raise DatabaseUnavailable("the worker lost the database.", next_step="It can be started again at once.") from reason


async def _work(work: Work, on_ready: Callable[[], None] | None) -> None:
    """Takes jobs until told to stop, or until the queue is lost."""
    async with _app(work).open_async() as app:
        worker = asyncio.create_task(
            app.run_worker_async(
                queues=[RUNS],
                concurrency=1,
                install_signal_handlers=False,
                listen_notify=False,  # its connection would not survive a restart of Postgres, and take the worker along
                fetch_job_polling_interval=POLL_S,
                update_heartbeat_interval=work.stalled_s / 4,
                stalled_worker_timeout=work.stalled_s,
            )
        )
        upkeep = asyncio.create_task(_upkeep(work))
        if on_ready is not None:
            on_ready()
        while not work.stop.is_set() and not worker.done():
            await asyncio.sleep(0.1)
        worker.cancel()
        upkeep.cancel()
        ended = await asyncio.gather(worker, upkeep, return_exceptions=True)
        if isinstance(ended[0], Exception):
            raise ended[0]


def _app(work: Work) -> App:
    """Procrastinate for this worker alone, so that several may live in one process."""
    connector = PsycopgConnector(conninfo=work.database.url_text, kwargs=CONNECT_ARGUMENTS, min_size=1, max_size=4, timeout=work.stalled_s)
    app = App(connector=connector)

    def run_spec(context: JobContext, run_id: str) -> None:  # not async: a thread of its own lets the heart beat
        do_run(work, context.job, UUID(run_id))

    app.task(name=RUN_SPEC, queue=RUNS, pass_context=True, retry=_TryAgain())(run_spec)
    return app


async def _upkeep(work: Work) -> None:
    rounds = 0
    while True:
        try:
            await asyncio.to_thread(keep_up, work)
            if rounds % FORGET_EVERY == 0:
                await asyncio.to_thread(_forget, work)
        except LabError as failed:
            logger.warning("upkeep failed: %s", failed, extra={"action": "upkeep_failed"})
        rounds += 1
        await asyncio.sleep(work.stalled_s / 4)


def _forget(work: Work) -> None:
    with work.database.session() as session:
        forget_ended(session)
        given_up = states.forget_old(session)
    with work.database.session() as session:
        states.drop(session, work.store, given_up)
