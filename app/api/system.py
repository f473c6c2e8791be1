"""Whether the instance is well, and what it is."""

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Response
from sqlalchemy import text

from app.api.access import Asked
from app.api.limits import published
from engine.errors import DatabaseUnavailable
from engine.evidence.finding import METHOD_VERSION
from engine.provenance import engine_version

router = APIRouter(tags=["system"])

API_VERSION = 1
OLDEST_CLIENT = "0.1.0"

_WORKERS = text("select count(*) from jobs.procrastinate_workers where last_heartbeat > now() - interval '60 seconds'")
_QUEUED = text("select count(*) from runs where status = 'queued'")


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether everything that this instance needs is there.

    Attributes:
        status: ok, or down.
        workers: workers that gave a sign of life in the last minute.
        queued_runs: runs that wait for one.
    """

    status: str
    database: str
    workers: int
    queued_runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What this instance is, and how much it takes."""

    version: str
    api_version: int
    oldest_client: str
    method_version: int
    mode: str
    registration: str
    limits: dict[str, Any]


@router.get("/health", responses={503: {"model": Health, "description": "The database is away."}})
def health(asked: Asked, response: Response) -> Health:
    """Whether database and workers are there."""
    try:
        with asked.services.database.session() as session:
            workers, queued = (int(session.scalar(question) or 0) for question in (_WORKERS, _QUEUED))
    except DatabaseUnavailable:
        response.status_code = 503
        return Health(status="down", database="unreachable", workers=0, queued_runs=0)
    return Health(status="ok", database="ok", workers=workers, queued_runs=queued)


@router.get("/version")
def version(asked: Asked) -> Version:
    """Versions and limits."""
    settings = asked.services.settings
    return Version(
        version=engine_version(),
        api_version=API_VERSION,
        oldest_client=OLDEST_CLIENT,
        method_version=METHOD_VERSION,
        mode=settings.mode,
        registration=settings.registration,
        limits=published(),
    )
