"""A run's recorder that writes to the database. Only the newest attempt may write; the result appears in one step, at the end."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, delete, func, insert, select, update
from sqlalchemy.orm import Session

from db import states
from db.connection import Database
from db.schema import Artifact, Run, RunItem, RunMetric
from engine.errors import Conflict, DatabaseUnavailable, RunCancelled, StoreError
from engine.provenance import Provenance
from engine.recorder import JsonValue
from engine.result import AnyResult, ArtifactRef
from engine.spec import AnySpec
from engine.store import Store

logger = logging.getLogger(__name__)

EVERY_S = 0.5  # between two writes of progress, and two looks at whether somebody wants the run to stop
PATIENCE_S = 60.0  # how long a run goes on while the database is away, as when it is restarted
TRACEBACK_CHARACTERS = 20_000


class DatabaseRecorder:
    """Records one attempt at a run; `attempt` comes from `db.runs.claim_run`."""

    def __init__(
        self,
        database: Database,
        store: Store,
        *,
        run_id: UUID,
        attempt: int,
        stopping: Callable[[], bool] = lambda: False,
        retried: Callable[[BaseException], bool] = lambda _: False,
    ) -> None:
        """Records for one attempt.

        Args:
            database: where the run is.
            store: takes the artefacts.
            run_id: the run.
            attempt: what `claim_run` returned; a later claim fences this one out.
            stopping: whether the worker is leaving; then the run is stopped, and stays as it is for whoever is next.
            retried: whether a failure of that kind is tried again; then the run is queued, not failed.
        """
        self._database = database
        self._store = store
        self._id = run_id
        self._attempt = attempt
        self._stopping = stopping
        self._retried = retried
        self._items: list[dict[str, Any]] = []
        self._metrics: dict[tuple[str, int], float] = {}
        self._artifacts: dict[str, ArtifactRef] = {}
        self._wrote_at = 0.0
        self._away_since: float | None = None
        self._stop = False

    @property
    def run_id(self) -> UUID:
        """UUIDv7 of the run."""
        return self._id

    @property
    def put_back(self) -> bool:
        """Whether the run was stopped because the worker is leaving, so that somebody else should do it."""
        return self._stopping() and not self._stop

    def begin(self, spec: AnySpec, provenance: Provenance) -> None:
        """Keeps what is used; the time that is left is reckoned from here, not from the loading of the model."""
        del spec  # the row has it since it was queued
        values = {"provenance": provenance.model_dump(mode="json"), "progress_message": "starting", "started_at": func.now()}
        self._patiently(lambda session: self._update(session, **values))

    def progress(self, fraction: float, message: str) -> None:
        """Shows the progress, twice a second at most; a sign of life as well."""
        if time.monotonic() - self._wrote_at >= EVERY_S:
            self._tell(progress=min(max(0.0, fraction), 1.0), progress_message=_storable(message[:500]))

    def metric(self, name: str, value: float, step: int = 0) -> None:
        """Keeps a point for the end."""
        self._metrics[name, step] = value

    def item(self, key: str, values: Mapping[str, JsonValue]) -> None:
        """Keeps a row for the end."""
        storable = {name: _storable(value) if isinstance(value, str) else value for name, value in values.items()}
        self._items.append({"run_id": self._id, "key": key, "position": len(self._items), "values": storable})

    def artifact(self, name: str, data: bytes, media_type: str) -> ArtifactRef:
        """Puts a file into the store; the run names it at the end."""
        ref = ArtifactRef(name=name, sha256=self._store.put(data), size_bytes=len(data), media_type=media_type)
        self._artifacts[name] = ref
        return ref

    def save(self, state: bytes) -> None:
        """Puts the state into the store and its hash on the run; dropped if the database is away just now.

        Raises:
            StoreError: it could not be written.
        """
        sha256, before = self._store.put(state), None
        try:
            with self._database.session() as session:
                before = states.replace(session, sha256, self._mine)
        except DatabaseUnavailable:
            logger.warning("state could not be kept", extra={"action": "state_lost", "run_id": str(self._id)})
        self._drop(sha256, before)

    def saved(self) -> bytes | None:
        """The state that the last attempt kept, if the store still has it."""
        found: list[str | None] = []
        self._patiently(lambda session: found.append(session.scalar(select(Run.state_sha256).where(*self._mine))))
        try:
            return self._store.get(found[-1]) if found[-1] else None
        except StoreError as lost:
            logger.warning("state cannot be read: %s", lost, extra={"action": "state_lost", "run_id": str(self._id)})
            return None

    def cancelled(self) -> bool:
        """Whether somebody asked the run to stop, another attempt took over, or the worker is leaving."""
        if not self._stop and time.monotonic() - self._wrote_at >= EVERY_S:
            self._tell()
        return self._stop or self._stopping()

    def finish(self, result: AnyResult, provenance: Provenance) -> None:
        """Writes everything in one transaction.

        Raises:
            Conflict: another attempt took over; nothing was written.
        """
        values: dict[str, Any] = {
            "status": "ok",
            "result": result.model_dump(mode="json"),
            "provenance": provenance.model_dump(mode="json"),
            "progress": 1.0,
            "progress_message": "done",
            "finished_at": func.now(),
        }
        left_over: list[str | None] = []

        def write(session: Session) -> None:
            left_over.append(states.replace(session, None, self._mine))
            if not self._update(session, **values):
                raise Conflict(f"run {self._id} was taken over by another worker.")
            self._write_rows(session)

        self._patiently(write)
        self._drop(*left_over)

    def fail(self, error: BaseException, traceback: str) -> None:
        """Marks the run as failed or cancelled, unless another attempt took over or the worker puts it back."""
        cancelled = isinstance(error, RunCancelled)
        if cancelled and self.put_back:
            return
        if self._retried(error):
            again = {"status": "queued", "progress": 0.0, "progress_message": _storable(f"is tried again: {error}"[:500])}
            self._patiently(lambda session: self._update(session, **again))
            return
        values: dict[str, Any] = {
            "status": "cancelled" if cancelled else "failed",
            "error": None if cancelled else _storable(str(error)[:4000]) or type(error).__name__,
            "traceback": None if cancelled else _storable(traceback[-TRACEBACK_CHARACTERS:]),
            "finished_at": func.now(),
        }
        self._patiently(lambda session: self._update(session, **values))

    def _tell(self, **values: Any) -> None:
        """Writes what may be lost, and learns whether to go on."""
        self._wrote_at = time.monotonic()
        try:
            with self._database.session() as session:
                row = session.execute(self._fenced(**values).returning(Run.cancel_requested)).first()
        except DatabaseUnavailable:
            self._away_since = self._away_since or time.monotonic()
            if time.monotonic() - self._away_since > PATIENCE_S:
                raise
            logger.warning("progress could not be written", extra={"action": "progress_lost", "run_id": str(self._id)})
            return
        self._away_since = None
        self._stop = row is None or row.cancel_requested

    def _patiently(self, write: Callable[[Session], object]) -> None:
        """Writes in one transaction what must not be lost; a database that is away is waited for."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                with self._database.session() as session:
                    write(session)
            except DatabaseUnavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1.0)
            else:
                return

    def _update(self, session: Session, **values: Any) -> bool:
        return session.execute(self._fenced(**values).returning(Run.id)).first() is not None

    def _drop(self, *hashes: str | None) -> None:
        """Removes states that no run refers to; what cannot be removed now stays behind, and does no harm."""
        with suppress(DatabaseUnavailable, StoreError), self._database.session() as session:
            states.drop(session, self._store, hashes)

    @property
    def _mine(self) -> tuple[ColumnElement[bool], ...]:
        """Holds for the run as long as this attempt is the newest."""
        return (Run.id == self._id, Run.attempt == self._attempt, Run.status == "running")

    def _fenced(self, **values: Any) -> Any:
        return update(Run).where(*self._mine).values(heartbeat_at=func.now(), **values)

    def _write_rows(self, session: Session) -> None:
        for table in (RunItem, RunMetric, Artifact):
            session.execute(delete(table).where(table.run_id == self._id))
        metrics = [{"run_id": self._id, "name": name, "step": step, "value": value} for (name, step), value in self._metrics.items()]
        artifacts = [{"run_id": self._id, **ref.model_dump()} for ref in self._artifacts.values()]
        for table, rows in ((RunItem, self._items), (RunMetric, metrics), (Artifact, artifacts)):
            if rows:
                session.execute(insert(table), rows)


def _storable(text: str) -> str:
    """The text without what Postgres cannot hold: NUL and halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\x00", "\ufffd")
