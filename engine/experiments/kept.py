"""Activations of many prompts, kept in memory or, when they are too large for that, in a temporary file that only this process sees."""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from engine.errors import StoreError

Positions = list[Tensor]
"""One tensor [pos, width] per prompt, padding cut off."""


class Kept:
    """One table of activations per layer, all prompts' positions one after the other."""

    def __init__(self, lengths: Sequence[int], *, layers: int, in_memory_bytes: int) -> None:
        """Makes nothing yet: type and width are those of what is put in first.

        Args:
            lengths: positions of each prompt.
            layers: how many layers will be kept.
            in_memory_bytes: size up to which all tables together stay in memory.
        """
        self.prompts: dict[int, Positions] = {}
        self._lengths = list(lengths)
        self._layers = layers
        self._in_memory_bytes = in_memory_bytes

    def put(self, layer: int, some: slice, rows: Positions) -> None:
        """Keeps the activations of some prompts.

        Raises:
            StoreError: they fit neither memory nor disk.
        """
        if layer not in self.prompts:
            self.prompts[layer] = list(self._table(rows[0]).split(self._lengths))
        for place, row in zip(self.prompts[layer][some], rows, strict=True):
            place.copy_(row)

    def _table(self, like: Tensor) -> Tensor:
        shape = (sum(self._lengths), like.shape[-1])
        bytes_each = shape[0] * shape[1] * like.element_size()
        if bytes_each * self._layers <= self._in_memory_bytes:
            return torch.empty(shape, dtype=like.dtype)
        return _in_a_file(shape, like.dtype, bytes_each)


def _in_a_file(shape: tuple[int, int], dtype: torch.dtype, size_bytes: int) -> Tensor:
    """A tensor whose numbers are on disk, in the folder for temporary files (TMPDIR). Nothing is left there, whatever happens."""
    with TemporaryDirectory(prefix="philab-", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "activations"
        _reserve(file, size_bytes)
        table = torch.from_file(str(file), shared=True, size=shape[0] * shape[1], dtype=dtype).view(shape)
        with suppress(OSError):
            file.unlink()  # the tensor keeps the room until it is gone; Windows does not allow it
    return table


def _reserve(file: Path, size_bytes: int) -> None:
    """Makes a file of that size whose room is really there: writing to it later has no way to say that the disk is full."""
    try:
        with file.open("wb") as out:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(out.fileno(), 0, size_bytes)
            elif shutil.disk_usage(file.parent).free < size_bytes:
                raise OSError("the disk is full")
    except OSError as failed:
        raise StoreError(
            f"{size_bytes / 2**30:.1f} GiB of reference activations do not fit into {file.parent.parent}: {failed.strerror or failed}.",
            next_step="Free some space there, set TMPDIR to a larger disk, or choose fewer reference rows or layers.",
        ) from failed
