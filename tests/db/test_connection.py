import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL

from db.connection import Database, open_database
from db.embedded import stop_server
from db.schema import Contributor
from engine.errors import DatabaseUnavailable
from engine.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


def settings(url: str | None, folder: Path) -> Settings:
    return Settings(database_url=url, data_dir=folder / "data", config_dir=folder / "config")


def refusal(url: str, folder: Path) -> str:
    with pytest.raises(DatabaseUnavailable) as caught:
        open_database(settings(url, folder))
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    return str(caught.value)


def test_nobody_listens(tmp_path: Path):
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        said = refusal(f"postgresql://u:secret@127.0.0.1:{port}/lab", tmp_path)
    assert f"127.0.0.1:{port}/lab cannot be reached: Connection refused. Check" in said
    assert "Check DATABASE_URL" in said


def test_unknown_host(tmp_path: Path):
    assert "no-such-host.invalid:5432/lab cannot be reached" in refusal("postgres://u:secret@no-such-host.invalid/lab", tmp_path)


def test_unknown_database(server_url: URL, tmp_path: Path):
    said = refusal(server_url.set(database="nothing").render_as_string(hide_password=False), tmp_path)
    assert 'database "nothing" does not exist' in said


@pytest.mark.parametrize("wrong", ["mysql://u:secret@h/d", "sqlite:///x", "nonsense"])
def test_what_is_no_postgres_url(wrong: str, tmp_path: Path):
    assert "DATABASE_URL" in refusal(wrong, tmp_path)


def test_wrong_password(server_url: URL, tmp_path: Path):
    with psycopg.connect(server_url.set(drivername="postgresql").render_as_string(), autocommit=True) as connection:
        connection.execute("create role visitor login password 'another'")
        row = connection.execute("show hba_file").fetchone()
        assert row is not None
        rules = Path(row[0])
        rules.write_text(f"local all visitor scram-sha-256\n{rules.read_text()}")
        connection.execute("select pg_reload_conf()")
    said = refusal(server_url.set(username="visitor", password="secret").render_as_string(hide_password=False), tmp_path)
    assert 'cannot be reached: FATAL:  password authentication failed for user "visitor". Check' in said


def test_an_old_server_is_refused(tmp_path: Path):
    """A server that says it is version 14, down to the bytes of the protocol."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=_speak_as_14, args=(listener,), daemon=True)
        thread.start()
        said = refusal(f"postgresql://u:secret@127.0.0.1:{listener.getsockname()[1]}/lab?sslmode=disable", tmp_path)
    assert "is PostgreSQL 14; expected 15 or newer. Upgrade it, or leave DATABASE_URL out" in said


def _speak_as_14(listener: socket.socket) -> None:
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            with client:
                client.recv(4096)  # the startup message
                version = b"server_version\0" + b"14.11\0"
                parameters = b"".join(
                    b"S" + struct.pack("!i", len(body) + 4) + body
                    for body in (version, b"client_encoding\0UTF8\0", b"standard_conforming_strings\0on\0")
                )
                client.sendall(b"R" + struct.pack("!ii", 8, 0) + parameters + b"Z" + struct.pack("!i", 5) + b"I")
                while client.recv(4096):
                    client.sendall(b"C" + struct.pack("!i", 10) + b"BEGIN\0" + b"Z" + struct.pack("!i", 5) + b"I")


def test_one_commits_the_other_rolls_back(own_database: Database):
    with own_database.session() as session:
        session.add(Contributor(username="kept"))
    with pytest.raises(ZeroDivisionError):
        _fail_halfway(own_database)
    with own_database.session() as session:
        assert session.scalars(text("select username from contributors")).all() == ["kept"]


def _fail_halfway(database: Database) -> None:
    with database.session() as session:
        session.add(Contributor(username="gone"))
        session.flush()
        raise ZeroDivisionError


def test_times_are_utc_whatever_the_server_thinks(own_database: Database):
    with own_database.engine.begin() as connection:
        connection.execute(text(f"alter database {own_database.url.database} set timezone to 'Asia/Tokyo'"))
    own_database.engine.dispose()
    with own_database.session() as session:
        assert session.scalar(text("show timezone")) == "UTC"


def test_the_embedded_database_comes_back_after_a_crash(short_folder: Callable[[str], Path]):
    folder = short_folder("crash")
    database = open_database(settings(None, folder))
    try:
        with database.session() as session:
            session.add(Contributor(username="ada"))
        stop_server(folder / "data")
        with database.session() as session:
            assert session.scalar(text("select count(*) from contributors")) == 1
    finally:
        database.close()


def test_a_full_disk_under_way_is_one_sentence(small_disk: Path):
    database = open_database(settings(None, small_disk))
    try:
        with pytest.raises(DatabaseUnavailable, match=r"the disk of the database .* is full\. Free some space; nothing was written"):
            _fill(database)
        with database.session() as session:
            assert session.scalar(text("select to_regclass('big')")) is None
    finally:
        database.close()


def _fill(database: Database) -> None:
    with database.session() as session:
        session.execute(text("create unlogged table big as select repeat('x', 1000) from generate_series(1, 1000000)"))


@pytest.fixture
def small_disk(short_folder: Callable[[str], Path]) -> Iterator[Path]:
    folder = short_folder("small")
    command = ["mount", "-t", "tmpfs", "-o", "size=160m,mode=755", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a full disk cannot be made here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_closing_one_database_leaves_the_server_to_the_others_of_this_process(short_folder: Callable[[str], Path]):
    folder = short_folder("shared")
    one, other = (open_database(settings(None, folder)) for _ in range(2))
    one.close()
    one.close()
    file = folder / "data" / "postgres" / "postmaster.pid"
    assert file.exists()
    other.close()
    assert not file.exists()


def test_db_imports_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "import db.connection, db.runs, db.recorder, db.work, db.imports, db.migrate"
    )
    subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", code], cwd=ROOT, check=True)
