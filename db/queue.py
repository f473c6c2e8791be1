"""The queue of runs: jobs of Procrastinate, in the schema `jobs` of the same Postgres."""

import logging

from procrastinate import SyncPsycopgConnector
from procrastinate.manager import JobManager
from procrastinate.tasks import configure_task
from sqlalchemy import text
from sqlalchemy.orm import Session

from db.schema import Run

logger = logging.getLogger(__name__)

RUN_SPEC = "run_spec"
RUNS = "runs"
INTERACTIVE, BACKGROUND = 10, 0  # priorities

RESCUE = text("""
select id, procrastinate_retry_job_v2(id, now(), null, null, null) from (
    select job.id from procrastinate_jobs job left join procrastinate_workers worker on worker.id = job.worker_id
    where job.status = 'doing' and (worker.id is null or worker.last_heartbeat < now() - make_interval(secs => :stalled_s))
    order by job.id for update of job skip locked
) stalled
""")

FORGET = text("""
delete from procrastinate_jobs job where status not in ('todo', 'doing')
and not exists (select from procrastinate_events event where event.job_id = job.id and event.at > now() - make_interval(days => :days))
""")


def enqueue(session: Session, run: Run, *, priority: int = INTERACTIVE) -> None:
    """Gives a queued run to the workers, in the caller's transaction: both are there, or neither."""
    job = configure_task(
        name=RUN_SPEC,
        job_manager=JobManager(SyncPsycopgConnector()),  # no connection of its own: it uses the one of the session
        queue=RUNS,
        priority=priority,
        connection=session.connection().connection.driver_connection,
    )
    run.job_id = job.defer(run_id=str(run.id))
    session.flush()


def rescue_stalled(session: Session, *, stalled_s: float) -> list[int]:
    """Ids of the jobs that were taken from workers which have been silent for so long; they are in the queue again.

    One statement under row locks, so that a job which somebody else has just rescued is not taken from its new worker.
    """
    ids = [row.id for row in session.execute(RESCUE, {"stalled_s": stalled_s})]
    for job_id in ids:
        logger.warning("job of a lost worker is tried again", extra={"action": "job_rescued", "job_id": job_id})
    return ids


def forget_ended(session: Session, *, days: int = 7) -> None:
    """Removes jobs that ended so long ago; the runs stay."""
    session.execute(FORGET, {"days": days})
