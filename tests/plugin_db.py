"""Fixtures of the database: a real embedded Postgres in a temporary folder, one migrated template, and copies of it."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.orm import Session

from db.connection import Database
from db.embedded import ensure_server, leave_server
from db.migrate import upgrade
from engine.settings import Settings
from engine.store import Store

FAST = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off -c autovacuum=off -c max_connections=100 -c shared_buffers=32MB"
TEMPLATE = "philab_template"


@pytest.fixture(scope="session")
def short_folder() -> Iterator[Callable[[str], Path]]:
    """Makes folders with short paths that every user may enter: sockets need the one, Postgres under root the other."""
    made: list[Path] = []

    def make(name: str) -> Path:
        folder = Path(tempfile.mkdtemp(prefix=f"philab-{name}-"))
        folder.chmod(0o755)
        made.append(folder)
        return folder

    yield make
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server_url(short_folder: Callable[[str], Path]) -> Iterator[URL]:
    """A Postgres of this test session, with its safety for power cuts switched off."""
    folder = short_folder("tests")
    yield make_url(ensure_server(folder, options=FAST))
    leave_server(folder)


@pytest.fixture(scope="session")
def new_database(server_url: URL) -> Callable[..., URL]:
    """Makes an empty database, or a copy of the migrated template."""

    def make(*, template: str = "template0") -> URL:
        name = f"test_{uuid4().hex[:12]}"
        _administer(server_url, f"create database {name} template {template} strategy file_copy")
        return server_url.set(database=name)

    return make


@pytest.fixture(scope="session")
def template(server_url: URL) -> str:
    """Name of a database with all migrations and no rows."""
    _administer(server_url, f"create database {TEMPLATE}")
    migrated = Database(server_url.set(database=TEMPLATE))
    upgrade(migrated.engine)
    migrated.close()
    return TEMPLATE


@pytest.fixture(scope="session")
def database(new_database: Callable[..., URL], template: str) -> Iterator[Database]:
    """A migrated database for all tests of this session. Nothing is committed here: use `session`."""
    shared = Database(new_database(template=template))
    yield shared
    shared.close()


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    """A session whose every change, committed or not, is gone after the test."""
    with database.engine.connect() as connection, connection.begin() as outer:
        with Session(connection, expire_on_commit=False, join_transaction_mode="create_savepoint") as session:
            yield session
        outer.rollback()


@pytest.fixture
def own_database(new_database: Callable[..., URL], template: str, server_url: URL) -> Iterator[Database]:
    """A migrated database of this test alone, for tests that commit or need several connections."""
    own = Database(new_database(template=template))
    yield own
    own.close()
    _administer(server_url, f"drop database {own.url.database} with (force)")


@pytest.fixture
def own_settings(own_database: Database, tmp_path: Path) -> Settings:
    """Settings of a lab that uses `own_database`, with folders of this test alone."""
    return Settings(database_url=own_database.url_text, data_dir=tmp_path / "data", config_dir=tmp_path / "config", worker=False)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of this test alone; the same folder as in `own_settings`."""
    return Store(tmp_path / "data" / "store")


def _administer(server_url: URL, statement: str) -> None:
    with psycopg.connect(server_url.set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(text(statement).text.encode())
