"""A store never shows half a file, and says when the disk is full."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import StoreError
from engine.store import Store, write_atomically


def test_bytes_come_back_under_their_hash(tmp_path: Path) -> None:
    store = Store(tmp_path)
    sha256 = store.put(b"weights")
    assert sha256 == hashlib.sha256(b"weights").hexdigest()
    assert store.get(sha256) == b"weights"
    assert store.put(b"weights") == sha256
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == [sha256]


def test_any_fsspec_url_will_do() -> None:
    store = Store("memory://philab-test")
    assert store.get(store.put(b"x")) == b"x"


def test_missing_and_damaged_bytes_are_told_apart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="cannot be read"):
        store.get("0" * 64)
    sha256 = store.put(b"good")
    next(tmp_path.rglob(sha256)).write_bytes(b"bad")
    with pytest.raises(StoreError, match="is damaged"):
        store.get(sha256)


FULL = """
import errno, sys
from pathlib import Path
from engine.errors import StoreError
from engine.store import Store
try:
    Store(Path(sys.argv[1])).put(b"x" * 4_000_000)
except StoreError as failed:
    print(failed)
"""


@pytest.mark.skipif(not Path("/dev/shm").is_dir() or os.geteuid() != 0, reason="needs a small file system of its own")
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        said = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True).stdout
        assert "disk" in said
        assert "is full" in said
        assert not [file for file in tmp_path.rglob("*") if file.is_file()]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "f"
    write_atomically(file, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="large"):
            write_atomically(file, b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert file.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]
