"""Weights on disk: which files, what is in them, and their fingerprint. Reads safetensors headers; imports no torch."""

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import rfc8785

from engine.errors import ModelError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NOT_THE_MODEL = frozenset({"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"})
"""Keys of config.json that say how it was saved or is run, not what the model is."""
CHUNK_BYTES = 2**22
MAX_HEADER_BYTES = 100 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor in a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model in a folder: the single one, or those that the index names.

    Raises:
        ModelError: there are none, or one is missing.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        files = sorted({folder / name for name in _json(folder / INDEX).get("weight_map", {}).values()})
        missing = [file.name for file in files if not file.is_file()]
        if files and not missing:
            return files
        raise ModelError(f"{folder} lacks {', '.join(missing) or 'all shards'} of its weights.", next_step="Copy or download it again.")
    raise ModelError(
        f"{folder} holds no weights: {_what_is_there(folder)}.", next_step=f"Save the model as {SINGLE} (save_pretrained does)."
    )


def _what_is_there(folder: Path) -> str:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        return f"pickled files are never read, and {SINGLE} is missing"
    return f"expected {SINGLE} or {INDEX}"


def stored_tensors(files: list[Path]) -> list[StoredTensor]:
    """All tensors of these files by name.

    Raises:
        ModelError: a file is damaged, or a tensor is there twice.
    """
    tensors = sorted((tensor for file in files for tensor in _header(file)), key=lambda tensor: tensor.name)
    for one, other in pairwise(tensors):
        if one.name == other.name:
            raise ModelError(f"tensor '{one.name}' is in {one.file.name} and again in {other.file.name}.")
    return tensors


def _header(file: Path) -> Iterator[StoredTensor]:
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length)) if length <= MAX_HEADER_BYTES else None
        size = file.stat().st_size
        entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]  # type: ignore[union-attr]
        found = [_tensor(file, name, entry, 8 + length) for name, entry in entries]
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as wrong:
        raise ModelError(f"{file} is not a safetensors file: {wrong}.", next_step="Copy or download it again.") from wrong
    if any(tensor.stop > size for tensor in found):
        raise ModelError(f"{file} is cut off at {size} bytes.", next_step="Copy or download it again.")
    yield from found


def _tensor(file: Path, name: str, entry: dict[str, Any], data_start: int) -> StoredTensor:
    start, stop = entry["data_offsets"]
    return StoredTensor(
        name=name, dtype=str(entry["dtype"]), shape=tuple(entry["shape"]), file=file, start=data_start + start, stop=data_start + stop
    )


def fingerprint(folder: Path) -> str:
    """SHA-256 (hex) over the config and all weights: names, types, shapes, bytes. How they are cut into files does not matter.

    Raises:
        ModelError: the weights or the config are missing or damaged.
    """
    config = {key: value for key, value in _json(folder / "config.json").items() if key not in NOT_THE_MODEL}
    digest = hashlib.sha256(rfc8785.dumps(config))
    for tensor in stored_tensors(weight_files(folder)):
        digest.update(f"\n{tensor.name} {tensor.dtype} {list(tensor.shape)} {tensor.stop - tensor.start}\n".encode())
        for chunk in _bytes(tensor):
            digest.update(chunk)
    return digest.hexdigest()


def _bytes(tensor: StoredTensor) -> Iterator[bytes]:
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        left = tensor.stop - tensor.start
        while left > 0:
            chunk = stream.read(min(CHUNK_BYTES, left))
            left -= len(chunk)
            yield chunk


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as wrong:
        raise ModelError(f"{file} cannot be read: {wrong}.", next_step="Copy or download the model again.") from wrong
    if not isinstance(value, dict):
        raise ModelError(f"{file} holds {type(value).__name__}, expected an object.", next_step="Copy or download the model again.")
    return value
