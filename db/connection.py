"""The way to the database: a shared server by DATABASE_URL, or the embedded one."""

import logging
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.orm import Session

from db.embedded import ensure_server, leave_server
from db.migrate import upgrade
from engine.errors import DatabaseUnavailable
from engine.settings import Settings

logger = logging.getLogger(__name__)

OLDEST_VERSION = 15
CONNECT_TIMEOUT_S = 10
CONNECT_ARGUMENTS: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT_S, "options": "-c search_path=public,jobs -c timezone=UTC"}
"""How every connection of ours is made: tables are in `public`, the queue in `jobs`."""


class _Users:
    """The databases that are open in this process: one of them must not stop the embedded server under the others."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: list[Database] = []

    def enter(self, database: "Database") -> None:
        with self._lock:
            self._open.append(database)

    def last_to_leave(self, database: "Database") -> bool:
        """Whether this was the last one on its data folder; False when it had left before."""
        with self._lock:
            if database not in self._open:
                return False
            self._open.remove(database)
            return all(other.data_dir != database.data_dir for other in self._open)


_embedded_users = _Users()


class Database:
    """A pool of connections to one database.

    Attributes:
        url: where it is; `url_text` has the password in clear.
        data_dir: the data folder of the embedded server, None for a shared one.
    """

    def __init__(self, url: URL, *, data_dir: Path | None = None, pool_size: int = 10) -> None:
        self.url = url
        self.data_dir = data_dir
        self.engine = create_engine(url, pool_pre_ping=True, pool_size=pool_size, max_overflow=20, connect_args=CONNECT_ARGUMENTS)
        event.listen(self.engine, "do_connect", self._connect)

    @property
    def url_text(self) -> str:
        """The URL for libpq, with the password; never to be shown."""
        return self.url.set(drivername="postgresql").render_as_string(hide_password=False)

    @contextmanager
    def session(self) -> Generator[Session]:
        """A session that commits at the end, and rolls back when anything is raised.

        Raises:
            DatabaseUnavailable: the server went away.
        """
        with Session(self.engine, expire_on_commit=False) as session:
            try:
                yield session
                session.commit()
            except OperationalError as failed:
                session.rollback()
                if isinstance(failed.orig, psycopg.errors.DiskFull):
                    raise DatabaseUnavailable(
                        f"the disk of the database at {_place(self.url)} is full.", next_step="Free some space; nothing was written."
                    ) from failed
                if failed.connection_invalidated or not _answered(failed):
                    raise _unavailable(self.url, failed.orig or failed) from failed
                raise

    def check(self) -> None:
        """Connects once.

        Raises:
            DatabaseUnavailable: it cannot be reached, or is older than version 15.
        """
        try:
            with self._dial(conninfo=self.url_text, **CONNECT_ARGUMENTS) as connection:  # SQLAlchemy would ask more than a version first
                version = connection.info.server_version
        except psycopg.Error as failed:
            raise _unavailable(self.url, failed) from failed
        if version < OLDEST_VERSION * 10_000:
            raise DatabaseUnavailable(
                f"the server at {_place(self.url)} is PostgreSQL {version // 10_000}; expected {OLDEST_VERSION} or newer.",
                next_step="Upgrade it, or leave DATABASE_URL out to use the embedded one.",
            )

    def close(self) -> None:
        """Lets go of all connections; the embedded server stops with the last process of ours that uses it."""
        self.engine.dispose()
        if self.data_dir is not None and _embedded_users.last_to_leave(self):
            leave_server(self.data_dir)

    def _connect(self, dialect: Any, record: Any, arguments: Any, parameters: dict[str, Any]) -> Any:  # noqa: ARG002
        """How SQLAlchemy's pool makes a connection."""
        return self._dial(**parameters)

    def _dial(self, **parameters: Any) -> "psycopg.Connection[Any]":
        """A connection of the driver; the embedded server is started again if it died."""
        try:
            return psycopg.connect(**parameters)
        except psycopg.OperationalError:
            if self.data_dir is None:
                raise
            ensure_server(self.data_dir)
            return psycopg.connect(**parameters)


def open_database(settings: Settings, *, migrate: bool = True) -> Database:
    """The database that the settings name, its schema brought up to date.

    Raises:
        DatabaseUnavailable: it cannot be used; the text says why, and the way out.
    """
    database = _shared(settings.database_url) if settings.database_url else _embedded(settings.data_dir)
    try:
        database.check()
        if migrate:
            upgrade(database.engine)
    except BaseException:
        database.close()
        raise
    return database


def _shared(text: str) -> Database:
    try:
        url = make_url(re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql+psycopg://", text))
    except ArgumentError as wrong:
        raise DatabaseUnavailable("DATABASE_URL is not a URL; expected 'postgresql://user:password@host:5432/name'.") from wrong
    if url.get_backend_name() != "postgresql":
        raise DatabaseUnavailable(
            f"DATABASE_URL names '{url.get_backend_name()}'; philab works with PostgreSQL only.",
            next_step="Leave DATABASE_URL out to use the embedded one.",
        )
    return Database(url)


def _embedded(data_dir: Path) -> Database:
    data_dir = data_dir.expanduser().resolve()
    url = make_url(ensure_server(data_dir))
    database = Database(url.set(database="philab"), data_dir=data_dir)
    _embedded_users.enter(database)
    try:
        _ensure_database(url, "philab")
    except BaseException:
        database.close()
        raise
    return database


def _ensure_database(url: URL, name: str) -> None:
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as connection:
        found = connection.execute("select 1 from pg_database where datname = %s", [name]).fetchone()
        if not found:
            try:
                connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
            except psycopg.errors.DuplicateDatabase:
                logger.debug("another process made the database", extra={"action": "database_exists"})


def _answered(failed: OperationalError) -> bool:
    """Whether the server said something, so that it is there."""
    return getattr(failed.orig, "sqlstate", None) is not None


def _place(url: URL) -> str:
    return f"{url.host or url.query.get('host', 'the local socket')}:{url.port or 5432}/{url.database or ''}"


def _unavailable(url: URL, reason: BaseException) -> DatabaseUnavailable:
    """One sentence from what the driver says in many lines; it names no password."""
    lines = [line.strip() for line in str(reason).splitlines() if line.strip() and not line.strip().startswith("Is the server running")]
    said = re.sub(r"^.*(connection to server|connection failed|hostaddr).*? failed: ", "", lines[-1] if lines else "no reason given")
    return DatabaseUnavailable(
        f"the database at {_place(url)} cannot be reached: {said.rstrip('.')}.",
        next_step="Check DATABASE_URL and that the server is up; leave DATABASE_URL out to use the embedded one.",
    )
