"""Files by content: an artefact is named by the SHA-256 of its bytes, so it is stored once and cannot change."""

import errno
import hashlib
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec

from engine.errors import StoreError


class Store:
    """A content-addressed store behind fsspec: a local folder, or a URL such as `s3://bucket/prefix`."""

    def __init__(self, url: str | Path) -> None:
        filesystem, root = fsspec.url_to_fs(str(url))
        self._files: Any = filesystem
        self._root = str(root).rstrip("/")
        self._local = "file" in filesystem.protocol

    def put(self, data: bytes) -> str:
        """Stores bytes and returns their SHA-256; a file that is there already is left alone.

        Raises:
            StoreError: it could not be written; nothing is left behind.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        if self.exists(sha256):
            return sha256
        try:
            if self._local:
                write_atomically(Path(self._path(sha256)), data)
            else:
                self._files.pipe_file(self._path(sha256), data)  # object stores publish whole objects only
        except OSError as failed:
            raise _explained(failed, self._root) from failed
        return sha256

    def get(self, sha256: str) -> bytes:
        """The bytes of that hash.

        Raises:
            StoreError: the store has none, or they were damaged.
        """
        try:
            data: bytes = self._files.cat_file(self._path(sha256))
        except OSError as failed:
            raise StoreError(f"artefact {sha256[:12]} cannot be read from {self._root}: {failed.strerror or failed}.") from failed
        if hashlib.sha256(data).hexdigest() != sha256:
            raise StoreError(f"artefact {sha256[:12]} in {self._root} is damaged.", next_step="Restore it from a backup or run again.")
        return data

    def remove(self, sha256: str) -> None:
        """Removes the bytes of that hash, if there are any; the caller knows that nobody refers to them.

        Raises:
            StoreError: they could not be removed.
        """
        try:
            self._files.rm_file(self._path(sha256))
        except FileNotFoundError:
            return
        except OSError as failed:
            raise _explained(failed, self._root) from failed

    def exists(self, sha256: str) -> bool:
        """Whether the store has bytes of that hash."""
        return bool(self._files.exists(self._path(sha256)))

    def _path(self, sha256: str) -> str:
        return f"{self._root}/{sha256[:2]}/{sha256[2:4]}/{sha256}"


def write_atomically(file: Path, data: bytes) -> None:
    """Writes a file under a temporary name and renames it, so that no reader ever sees a part.

    Raises:
        OSError: it could not be written; the temporary file is gone and an older file unharmed.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _explained(failed: OSError, root: str) -> StoreError:
    if failed.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"the disk of {root} is full.", next_step="Free some space, or point PHILAB_STORE or PHILAB_DATA elsewhere.")
    return StoreError(f"{root} cannot be written: {failed.strerror or failed}.", next_step="Check its permissions.")
