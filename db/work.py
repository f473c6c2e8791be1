"""The job queue: who does the long work, and what happens when they die. The one module of `db` that runs the engine.

Procrastinate keeps the jobs in the schema `jobs` of the same Postgres. A worker that is killed stops its heartbeat; within `stalled_s`
another one (or the same after its restart) takes the run over with a higher attempt number, and whatever the old one still writes is
refused. Nothing of a run counts before its last step.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from tempfile import gettempdir
from typing import Any
from uuid import UUID

import procrastinate
from filelock import FileLock, Timeout
from procrastinate import JobContext, PsycopgConnector, RetryStrategy, SyncPsycopgConnector
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from db.connection import Database
from db.recorder import DatabaseRecorder
from db.runs import claim_run, create_run, spec_of
from db.schema import Contributor, Run
from db.viewer import Viewer
from engine.errors import DatabaseUnavailable, LabError, StoreError
from engine.settings import Settings
from engine.spec import AnySpec
from engine.store import Store

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3  # of one run: kills of its worker, and losses of database or store
STALLED_S = 30.0
INTERACTIVE, BACKGROUND = 10, 0  # priorities
SEARCH_PATH = "jobs, public"

queue = procrastinate.App(connector=SyncPsycopgConnector())
_desk = procrastinate.App(connector=SyncPsycopgConnector())
"""Where jobs are handed in. Apart from `queue`, whose connector a worker in the same process exchanges for its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a worker has at hand.

    Attributes:
        stop: set when the worker should leave; a run at work is put back into the queue.
        stalled_s: a worker that gave no sign of life for so long is dead.
    """

    database: Database
    store: Store
    settings: Settings
    stop: threading.Event
    stalled_s: float


def enqueue(session: Session, run: Run, *, priority: int = INTERACTIVE) -> None:
    """Gives a queued run to the workers, in the caller's transaction."""
    connection = session.connection().connection.driver_connection
    job = _desk.configure_task("run_spec", queue="runs", connection=connection, priority=priority)
    run.job_id = job.defer(run_id=str(run.id))
    session.flush()


def start_run(session: Session, viewer: Viewer, spec: AnySpec, *, priority: int = INTERACTIVE, **more: Any) -> Run:
    """A new run that is queued for the workers; `more` as in `db.runs.create_run`.

    Raises:
        NotAllowed: the viewer may not start runs.
    """
    run = create_run(session, viewer, spec, **more)
    enqueue(session, run, priority=priority)
    return run


@queue.task(name="run_spec", queue="runs", pass_context=True, retry=RetryStrategy(max_attempts=20, exponential_wait=2))
def run_spec(context: JobContext, run_id: str) -> None:
    """Does one run. Running it twice, or after it is over, changes nothing."""
    work: Work = context.additional_context["work"]
    run = _claimed(work, UUID(run_id))
    if run is not None:
        _execute(work, run)
    _submit_if_wanted(work, UUID(run_id))


def _claimed(work: Work, run_id: UUID) -> Run | None:
    """The run, marked as ours; None if it is over."""
    with work.database.session() as session:
        attempt = claim_run(session, run_id)
        run = session.get(Run, run_id)
        if attempt is None or run is None:
            return None
        if attempt > MAX_ATTEMPTS:
            run.status, run.finished_at = "failed", session.scalar(select(func.now()))
            run.error = f"the worker was lost {MAX_ATTEMPTS} times while it did this run; it may need more memory than there is."
            return None
        session.refresh(run)
        return run


def _execute(work: Work, run: Run) -> None:
    from engine.runner import run as run_engine

    recorder = DatabaseRecorder(work.database, work.store, run_id=run.id, attempt=run.attempt, stopping=work.stop.is_set)
    try:
        with _device(recorder):
            run_engine(spec_of(run), recorder, settings=work.settings, preset=run.preset)
    except (DatabaseUnavailable, StoreError):
        if run.attempt < MAX_ATTEMPTS:
            _put_back(work, run.id, run.attempt)
            raise  # the queue tries again, later each time
        logger.warning("run failed", extra={"action": "run_failed", "run_id": str(run.id)}, exc_info=True)
    except LabError:
        if work.stop.is_set():
            _put_back(work, run.id, run.attempt, enqueued=True)
        logger.info("run ended early", extra={"action": "run_ended_early", "run_id": str(run.id)}, exc_info=True)
    except Exception:
        # The run says so itself, with its traceback; the same spec would fail the same way again.
        logger.exception("run failed", extra={"action": "run_failed", "run_id": str(run.id)})


def _put_back(work: Work, run_id: UUID, attempt: int, *, enqueued: bool = False) -> None:
    """Queues a run again that this worker could not finish. A worker that leaves does not use up an attempt."""
    with work.database.session() as session:
        mine = (Run.id == run_id, Run.attempt == attempt, Run.status.in_(("running", "failed")), Run.cancel_requested.is_(False))
        values: dict[str, Any] = {"status": "queued", "progress": 0.0, "progress_message": "", "finished_at": None}
        if enqueued:
            values["attempt"] = attempt - 1
        run = session.scalar(update(Run).where(*mine).values(**values).returning(Run))
        if run is not None and enqueued:
            enqueue(session, run)


class _device:  # noqa: N801
    """One heavy run at a time on the devices of this machine; who waits says so, and can be cancelled."""

    def __init__(self, recorder: DatabaseRecorder) -> None:
        self._recorder = recorder
        self._lock = FileLock(f"{gettempdir()}/philab-device.lock", mode=0o666)

    def __enter__(self) -> None:
        while True:
            try:
                self._lock.acquire(timeout=0.5)
            except Timeout:
                self._recorder.progress(0.0, "waiting: another run has the device")
                if self._recorder.cancelled():
                    return  # the run itself stops at its first question
            else:
                return

    def __exit__(self, *exc: object) -> None:
        self._lock.release()


def _submit_if_wanted(work: Work, run_id: UUID) -> None:
    """Submits a run that was made for a task, once."""
    from db.submissions import submit_run

    with work.database.session() as session:
        run = session.get(Run, run_id)
        if run is None or run.status != "ok" or run.lease_id is None or run.owner_id is None:
            return
        role = session.scalar(select(Contributor.role).where(Contributor.id == run.owner_id))
        try:
            submit_run(session, Viewer(contributor_id=run.owner_id, role=role), run_id)
        except LabError as refused:
            session.rollback()
            run = session.get_one(Run, run_id)
            run.progress_message = f"done, but not submitted: {refused}"[:500]


@queue.periodic(cron="* * * * * */5", periodic_id="rescue")
@queue.task(name="rescue", queue="upkeep", pass_context=True, queueing_lock="rescue", priority=100)
async def rescue(context: JobContext, timestamp: int) -> None:
    """Gives jobs of dead workers to living ones."""
    del timestamp
    work: Work = context.additional_context["work"]
    for job in await context.app.job_manager.get_stalled_jobs(seconds_since_heartbeat=work.stalled_s):
        logger.warning("job of a lost worker is tried again", extra={"action": "job_rescued", "job_id": job.id})
        await context.app.job_manager.retry_job(job)


@queue.periodic(cron="* * * * *", periodic_id="expire_leases")
@queue.task(name="expire_leases", queue="upkeep", pass_context=True, queueing_lock="expire_leases")
def expire_leases(context: JobContext, timestamp: int) -> None:
    """Gives shards back whose leases have run out."""
    from db.leases import expire_due

    del timestamp
    work: Work = context.additional_context["work"]
    with work.database.session() as session:
        expire_due(session)


@queue.periodic(cron="17 4 * * *", periodic_id="forget_jobs")
@queue.task(name="forget_jobs", queue="upkeep", pass_context=True, queueing_lock="forget_jobs")
async def forget_jobs(context: JobContext, timestamp: int) -> None:
    """Removes jobs that ended a week ago; the runs stay."""
    del timestamp
    await context.app.job_manager.delete_old_jobs(nb_hours=24 * 7, include_failed=True, include_cancelled=True, include_aborted=True)


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
    try:
        asyncio.run(_work(work, on_ready))
    except (procrastinate.exceptions.ConnectorException, OSError) as lost:
        raise DatabaseUnavailable(f"the worker lost the database: {lost}.", next_step="It can be started again at once.") from lost
    if not stop.is_set():
        raise DatabaseUnavailable("the worker lost the database.", next_step="It can be started again at once.")


async def _work(work: Work, on_ready: Callable[[], None] | None) -> None:
    connector = PsycopgConnector(conninfo=work.database.url_text, kwargs={"options": f"-c search_path={SEARCH_PATH.replace(' ', '')}"})
    common: Any = {
        "wait": True,
        "install_signal_handlers": False,
        "additional_context": {"work": work},
        "update_heartbeat_interval": work.stalled_s / 4,
        "stalled_worker_timeout": work.stalled_s,
        "fetch_job_polling_interval": 2.0,
    }
    with queue.replace_connector(connector) as app:
        async with app.open_async():
            workers = [
                asyncio.create_task(app.run_worker_async(queues=["runs"], concurrency=1, name="runs", **common)),
                asyncio.create_task(app.run_worker_async(queues=["upkeep"], concurrency=2, name="upkeep", **common)),
            ]
            if on_ready is not None:
                on_ready()
            while not work.stop.is_set() and not any(worker.done() for worker in workers):
                await asyncio.sleep(0.2)
            await _ended(workers)


async def _ended(workers: list["asyncio.Task[None]"]) -> None:
    """Lets the workers finish the step at hand, and raises what one of them died of."""
    for worker in workers:
        worker.cancel()
    for outcome in await asyncio.gather(*workers, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome
