"""The models that come with philab: where their files are. Imports without torch; the planted model is written on first use."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

from engine.errors import ModelError, StoreError

PLANTED = "planted-induction"
PLANTED_VERSION = "1"
"""Raised whenever the planted weights change, so that a copy written earlier is replaced."""
MICRO = "philab-micro"


def planted_folder(data_dir: Path) -> Path:
    """The folder of `planted-induction`, written first if need be. Safe when several processes ask at once.

    Raises:
        StoreError: the data folder cannot be written.
    """
    folder = data_dir / "models" / PLANTED
    try:
        if not _is_current(folder):
            _write_in_place(folder)
    except OSError as wrong:
        raise StoreError(
            f"model '{PLANTED}' cannot be written to {folder}: {wrong.strerror or wrong}.",
            next_step="Free some space, or set PHILAB_DATA to a folder that can be written.",
        ) from wrong
    return folder


def _is_current(folder: Path) -> bool:
    mark = folder / "VERSION"
    return mark.is_file() and mark.read_text(encoding="utf-8") == PLANTED_VERSION


def _write_in_place(folder: Path) -> None:
    """Write beside the place, then rename: others see the whole folder or none."""
    from engine.models.planted import write_planted

    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{PLANTED}-", dir=folder.parent))
    try:
        write_planted(fresh)
        (fresh / "VERSION").write_text(PLANTED_VERSION, encoding="utf-8")
        fresh.chmod(0o755)
        _swap_in(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _swap_in(fresh: Path, folder: Path) -> None:
    if folder.exists() and not _is_current(folder):
        outdated = fresh.with_name(f"{fresh.name}-old")
        folder.rename(outdated)
        shutil.rmtree(outdated, ignore_errors=True)
    try:
        fresh.rename(folder)
    except OSError:
        if not _is_current(folder):
            raise


def micro_folder(data_dir: Path) -> Path:  # noqa: ARG001  (all shipped models are asked for in the same way)
    """The folder of `philab-micro`, which travels with the code.

    Raises:
        ModelError: this installation lacks it.
    """
    return with_weights(Path(str(files("engine") / "resources" / "models" / MICRO)))


def with_weights(folder: Path) -> Path:
    """The folder, if the weights of `philab-micro` are in it.

    Raises:
        ModelError: they are not.
    """
    if not (folder / "model.safetensors").is_file():
        raise ModelError(
            f"model '{MICRO}' belongs into {folder}, but its weights are not there.",
            next_step="Install philab again, or make the model with `python -m scripts.train_micro`.",
        )
    return folder


SHIPPED: Mapping[str, Callable[[Path], Path]] = MappingProxyType({MICRO: micro_folder, PLANTED: planted_folder})
"""Name of a shipped model -> the function from data folder to the model's folder."""
