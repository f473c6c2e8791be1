"""Where a model's files are: a shipped model, a local folder, or a download from the Hugging Face hub. Imports without torch."""

from contextlib import suppress
from pathlib import Path

from engine.errors import UnknownModel
from engine.model_presets import close_names
from engine.models.hub import HUB_ID, downloaded_folder, hub_folder
from engine.models.reference import SHIPPED
from engine.settings import read_settings
from engine.spec.base import ModelRef


def resolve_model(ref: ModelRef, data_dir: Path | None = None) -> Path:
    """The folder with a model's files; a hub model is downloaded, a shipped one built on first use.

    Raises:
        UnknownModel: there is no such model; the text names it, those spelled like it, and the shipped ones.
        ModelError: the download failed, or the model has no safetensors.
    """
    folder = _folder_here(ref, data_dir)
    if folder is not None:
        return folder
    if _means_a_folder(ref.id):
        raise UnknownModel(f"there is no folder '{ref.id}'.", next_step=_choices(ref.id))
    try:
        return hub_folder(ref.id, ref.revision)
    except UnknownModel as unknown:
        raise UnknownModel(unknown.message, next_step=f"{unknown.next_step} {_choices(ref.id)}") from unknown


def local_folder(ref: ModelRef, data_dir: Path | None = None) -> Path | None:
    """The same without a network: None for a model that is not on this machine."""
    folder = _folder_here(ref, data_dir)
    return folder or (None if _means_a_folder(ref.id) else downloaded_folder(ref.id, ref.revision))


def _folder_here(ref: ModelRef, data_dir: Path | None) -> Path | None:
    """The folder of a shipped model, or the one that is named; a folder has no revision, so with one the hub is meant."""
    if ref.id in SHIPPED:
        return SHIPPED[ref.id](data_dir or read_settings().data_dir)
    folder = Path(ref.id)
    with suppress(RuntimeError):  # a home folder of a user who does not exist
        folder = folder.expanduser()
    return folder.resolve() if ref.revision is None and folder.is_dir() else None


def _means_a_folder(model_id: str) -> bool:
    return model_id[0] in "./~\\" or not HUB_ID.fullmatch(model_id)


def _choices(model_id: str) -> str:
    close = close_names(model_id)
    meant = f"Did you mean {' or '.join(close)}? " if close else ""
    return f"{meant}Shipped models: {', '.join(sorted(SHIPPED))}."
