"""The worker inside the web process of a laptop. A hosted instance runs `philab worker` processes instead."""

import logging
from threading import Event, Thread
from typing import Self

from db.connection import Database
from db.work import start_worker
from engine.settings import Settings

logger = logging.getLogger(__name__)

STOP_WITHIN_S = 20.0


class WorkerThread:
    """A thread that takes jobs from the queue, one after the other."""

    def __init__(self, thread: Thread, stop: Event) -> None:
        self._thread = thread
        self._stop = stop

    @classmethod
    def started(cls, database: Database, settings: Settings) -> Self:
        """A worker that is already at work."""
        stop = Event()
        thread = Thread(target=_work, args=(database, settings, stop), name="philab-worker", daemon=True)
        thread.start()
        return cls(thread, stop)

    def alive(self) -> bool:
        """Whether it still takes jobs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Asks it to end after the step at hand and waits a little. A job that is cut off is taken up again at the next start."""
        self._stop.set()
        self._thread.join(timeout=STOP_WITHIN_S)


def _work(database: Database, settings: Settings, stop: Event) -> None:
    """Works until asked to stop; a worker that gave up (the database was away) is started again."""
    wait_s = 1.0
    while not stop.is_set():
        try:
            start_worker(database, settings, stop=stop)
        except Exception:
            logger.exception("the worker ended unexpectedly", extra={"action": "worker_failed"})
        stop.wait(wait_s)
        wait_s = min(2 * wait_s, 30.0)
