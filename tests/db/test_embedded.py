import json
import os
import platform
import signal
import stat
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from db import embedded
from db.embedded import ensure_server, leave_server, stop_server
from engine.errors import DatabaseUnavailable

ROOT = Path(__file__).resolve().parents[2]
FAST = "-c fsync=off -c shared_buffers=16MB -c max_connections=20"
MEMBER = """
import sys
from pathlib import Path
from db.embedded import ensure_server, leave_server, stop_server
print(ensure_server(Path(sys.argv[1]), options=sys.argv[2]), flush=True)
if sys.stdin.readline().strip() == "leave":
    leave_server(Path(sys.argv[1]))
"""


class Member:
    """Another process of ours that uses the server of a data folder."""

    def __init__(self, data_dir: Path) -> None:
        command = [sys.executable, "-c", MEMBER, str(data_dir), FAST]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def url(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def leave(self) -> None:
        self.process.communicate("leave\n", timeout=60)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


@pytest.fixture
def data_dir(short_folder: Callable[[str], Path]) -> Iterator[Path]:
    folder = short_folder("embedded") / "data"
    yield folder
    if server_pid(folder) is not None:
        stop_server(folder)


def server_pid(data_dir: Path) -> int | None:
    file = data_dir / "postgres" / "postmaster.pid"
    pid = int(file.read_text().splitlines()[0]) if file.exists() else None
    alive = pid is not None and psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return pid if alive else None


def answer(url: str) -> int:
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql")) as connection:
        row = connection.execute("select 42").fetchone()
        assert row is not None
        return row[0]


def test_several_processes_share_one_server_and_the_last_one_stops_it(data_dir: Path):
    members = [Member(data_dir) for _ in range(3)]  # all at once, on an empty folder
    urls = {member.url() for member in members}
    assert len(urls) == 1
    assert answer(urls.pop()) == 42
    members[0].leave()
    members[1].kill()  # signs out nowhere
    assert server_pid(data_dir) is not None
    members[2].leave()
    assert server_pid(data_dir) is None
    assert not (data_dir / "postgres.host").exists()


def test_a_server_that_died_is_started_again_with_its_data(data_dir: Path):
    url = ensure_server(data_dir, options=FAST)
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as connection:
        connection.execute("create table kept (n int)")
    pid = server_pid(data_dir)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    url = ensure_server(data_dir, options=FAST)
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql")) as connection:
        assert connection.execute("select count(*) from kept").fetchone() == (0,)
    leave_server(data_dir)
    assert server_pid(data_dir) is None


def test_a_folder_that_another_host_uses_is_refused(data_dir: Path):
    data_dir.mkdir()
    (data_dir / "postgres.host").write_text(json.dumps({"host": "elsewhere", "pid": 4711}))
    with pytest.raises(
        DatabaseUnavailable, match=r"in use on host 'elsewhere' \(pid 4711\)\. Stop philab there; .*delete .*postgres\.host"
    ):
        ensure_server(data_dir)
    assert not (data_dir / "postgres").exists()


@pytest.mark.parametrize("left_behind", [json.dumps({"host": platform.node(), "pid": 2**22 + 1}), "not json", ""])
def test_the_lock_of_a_dead_process_on_this_host_is_taken_over(data_dir: Path, left_behind: str):
    data_dir.mkdir()
    (data_dir / "postgres.host").write_text(left_behind)
    assert answer(ensure_server(data_dir, options=FAST)) == 42
    assert json.loads((data_dir / "postgres.host").read_text()) == {"host": platform.node(), "pid": os.getpid()}
    leave_server(data_dir)


def test_modes_of_folders_that_existed_are_never_changed(short_folder: Callable[[str], Path], data_dir: Path):
    parent = data_dir.parent
    parent.chmod(0o751)
    ensure_server(data_dir / "deeper", options=FAST)
    leave_server(data_dir / "deeper")
    assert stat.S_IMODE(parent.stat().st_mode) == 0o751
    assert stat.S_IMODE((data_dir / "deeper" / "postgres").stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands the cluster to another user")
def test_root_keeps_the_cluster_elsewhere_when_its_user_cannot_enter_the_folder(
    short_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    closed, opened = short_folder("closed"), short_folder("opened")
    closed.chmod(0o700)
    monkeypatch.setattr(embedded, "OPEN_FOLDER", opened)
    assert answer(ensure_server(closed, options=FAST)) == 42
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    assert Path((closed / "postgres.at").read_text().strip()).is_relative_to(opened)
    leave_server(closed)


@pytest.mark.parametrize("kind", ["nfs4", "lustre"])
def test_network_file_systems_are_refused(data_dir: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    """No such mount can be made here, so the table of mounts is another one."""
    mount = namedtuple("mount", "mountpoint fstype")
    mounts = [mount("/", "ext4"), mount(str(data_dir.parent), kind)]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounts)
    with pytest.raises(DatabaseUnavailable, match=rf"network file system \({kind}\).*DATABASE_URL"):
        ensure_server(data_dir)


def test_a_full_disk_is_one_sentence_and_leaves_nothing_behind(data_dir: Path, tiny_disk: Path):
    with pytest.raises(DatabaseUnavailable, match=r"disk of the data folder .* is full\. Free some space") as caught:
        ensure_server(tiny_disk / "data", options=FAST)
    assert "\n" not in str(caught.value)
    assert not (tiny_disk / "data" / "postgres").exists()


@pytest.fixture
def tiny_disk(short_folder: Callable[[str], Path]) -> Iterator[Path]:
    folder = short_folder("tiny")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=755", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a full disk cannot be made here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseUnavailable, match=r"cannot be made: Not a directory\. Set PHILAB_DATA to another folder"):
        ensure_server(tmp_path / "file" / "data")


def test_a_damaged_cluster_is_one_sentence_with_the_log(data_dir: Path):
    ensure_server(data_dir, options=FAST)
    leave_server(data_dir)
    (data_dir / "postgres" / "global" / "pg_control").unlink()
    with pytest.raises(DatabaseUnavailable, match=r"cannot be used .*pg_control.* Its log is") as caught:
        ensure_server(data_dir, options=FAST)
    assert "\n" not in str(caught.value)
