"""What one web process shares: settings, database, store, the owner, and the worker. Imports without torch."""

import logging
from dataclasses import dataclass
from threading import Lock

from app.jobs import WorkerThread
from db.connection import Database, open_database
from db.contributors import ensure_owner
from db.viewer import Viewer
from engine.settings import Settings, read_settings
from engine.store import Store

logger = logging.getLogger(__name__)

_lock = Lock()
_running: "Services | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Made once per process by `start_services`.

    Attributes:
        owner: who uses this lab in `local` mode; None when hosted, where people sign in.
        worker: the worker inside this process, None where other processes do the jobs.
    """

    settings: Settings
    database: Database
    store: Store
    owner: Viewer | None
    worker: WorkerThread | None

    @property
    def hosted(self) -> bool:
        """Whether strangers may look at this instance."""
        return self.settings.mode == "hosted"

    def close(self) -> None:
        """Stops the worker, then lets go of the database. Doing it twice is harmless."""
        global _running
        if self.worker is not None:
            self.worker.stop()
        self.database.close()
        with _lock:
            if _running is self:
                _running = None


def start_services(settings: Settings | None = None) -> Services:
    """The services of this process; started by the first call, the same ones afterwards.

    Raises:
        SpecError: a setting is wrong.
        DatabaseUnavailable: no database, with the reason and the way out.
    """
    global _running
    with _lock:
        if _running is None:
            _running = _start(settings or read_settings())
        return _running


def services() -> Services:
    """The running services; started here when a page is served without the web process' own start."""
    return _running or start_services()


def _start(settings: Settings) -> Services:
    database = open_database(settings)
    try:
        owner = _owner(database, settings)
        worker = WorkerThread.started(database, settings) if settings.worker else None
    except BaseException:
        database.close()
        raise
    logger.info("services started", extra={"action": "services_started", "mode": settings.mode, "worker": worker is not None})
    return Services(
        settings=settings,
        database=database,
        store=Store(settings.store or settings.data_dir / "store"),
        owner=owner,
        worker=worker,
    )


def _owner(database: Database, settings: Settings) -> Viewer | None:
    if settings.mode != "local":
        return None
    with database.session() as session:
        return ensure_owner(session, settings)
