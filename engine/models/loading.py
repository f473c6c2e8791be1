"""A model id to a model in memory: shipped, a local folder, or from the Hugging Face hub. Code from a model is never run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, RLock
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from engine.device import pick_device
from engine.errors import ModelError, UnknownModel
from engine.hooks.anatomy import Anatomy, find_anatomy
from engine.models.hub import HUB_ID, hub_folder
from engine.models.memory import refuse_too_large
from engine.models.reference import SHIPPED
from engine.models.weights import fingerprint, weight_files
from engine.settings import read_settings
from engine.spec.base import ModelRef


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A model ready to be asked.

    Attributes:
        model: in evaluation mode, its weights without gradients.
        tokenizer: the model's own.
        device: where the weights are.
        fingerprint: SHA-256 over config and weights as stored.
        anatomy: where its sites are.
        ref: what was asked for.
        lock: held while anything is hooked into the model, so that two threads do not mix; take it to call the model directly.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    fingerprint: str
    anatomy: Anatomy
    ref: ModelRef
    lock: RLock = field(default_factory=RLock)

    @property
    def max_length(self) -> int | None:
        """Longest prompt in tokens that the model has positions for; None where it names no limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)


@dataclass(slots=True)
class _Kept:
    """The model loaded last, for the next run that asks for the same."""

    key: object = None
    loaded: LoadedModel | None = None
    lock: Lock = field(default_factory=Lock)


_kept = _Kept()


def load_model(ref: ModelRef, *, device: torch.device | None = None, data_dir: Path | None = None) -> LoadedModel:
    """The model, on `device` (the best one there is when None). The last one loaded is kept in memory.

    Raises:
        UnknownModel: there is no such model.
        ModelError: its files cannot be used; `ModelTooLarge` if they do not fit.
        UnknownAnatomy: it has no layers that the engine can find.
    """
    folder = resolve_model(ref, data_dir)
    device = device or pick_device()
    with _kept.lock:
        key = (ref, str(folder), str(device), _stamps(folder))
        if _kept.loaded is None or _kept.key != key:
            _kept.key, _kept.loaded = None, None
            _kept.loaded = _load(ref, folder, device)
            _kept.key = key
        return _kept.loaded


def forget_models() -> None:
    """Lets go of the model that is kept in memory."""
    with _kept.lock:
        _kept.key, _kept.loaded = None, None


def resolve_model(ref: ModelRef, data_dir: Path | None = None) -> Path:
    """The folder with a model's files; a hub model is downloaded, a shipped one built on first use.

    Raises:
        UnknownModel: there is no such model; the text names it and the shipped ones.
        ModelError: the download failed, or the model has no safetensors.
    """
    if ref.id in SHIPPED:
        return SHIPPED[ref.id](data_dir or read_settings().data_dir)
    folder = Path(ref.id).expanduser()
    if ref.revision is None and folder.is_dir():  # a folder has no revision: with one, the hub is meant
        return folder.resolve()
    if ref.id[0] in "./~\\" or not HUB_ID.fullmatch(ref.id):
        raise UnknownModel(f"there is no folder '{ref.id}'.", next_step=_choices())
    try:
        return hub_folder(ref.id, ref.revision)
    except UnknownModel as unknown:
        raise UnknownModel(unknown.message, next_step=f"{unknown.next_step} {_choices()}") from unknown


def _choices() -> str:
    return f"Shipped models: {', '.join(sorted(SHIPPED))}."


def _stamps(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of the weights: a folder that was saved again is loaded again."""
    files = [folder / "config.json", *weight_files(folder)]
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file())


def _load(ref: ModelRef, folder: Path, device: torch.device) -> LoadedModel:
    _refuse_adapter(folder)
    refuse_too_large(folder, dtype=ref.dtype, device=device, name=ref.id)
    stored = fingerprint(folder)
    with _quiet():
        tokenizer = _tokenizer(ref, folder)
        model = _model(ref, folder)
    model.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
    anatomy = find_anatomy(model)
    return LoadedModel(model=model, tokenizer=tokenizer, device=device, fingerprint=stored, anatomy=anatomy, ref=ref)


def _refuse_adapter(folder: Path) -> None:
    """An adapter names another model as its base, and that would be loaded instead."""
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder} holds an adapter, not a whole model.", next_step="Merge it into its base model and save that.")


def _model(ref: ModelRef, folder: Path) -> PreTrainedModel:
    config = _config(ref, folder)
    kernel = {} if ref.attention == "default" else {"attn_implementation": ref.attention}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, ref.dtype),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **kernel,
        )
    except (ValueError, KeyError, OSError, RuntimeError, ImportError) as wrong:
        raise ModelError(f"'{ref.id}' cannot be loaded: {_first_line(wrong)}", next_step="Choose another model.") from wrong
    model, report = loaded
    _refuse_incomplete(ref, report)
    return model


def _config(ref: ModelRef, folder: Path) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as wrong:
        raise ModelError(f"the config of '{ref.id}' cannot be used: {_first_line(wrong)}", next_step="Choose another model.") from wrong


def _refuse_incomplete(ref: ModelRef, report: dict[str, Any]) -> None:
    """Weights that the files lack would be random numbers."""
    lacking = sorted([*report.get("missing_keys", ()), *(str(key) for key in report.get("mismatched_keys", ()))])
    if lacking:
        raise ModelError(
            f"'{ref.id}' lacks {len(lacking)} of its weights or has them in another shape, the first is {lacking[0]}.",
            next_step="Save the whole causal language model, with its head.",
        )


def _tokenizer(ref: ModelRef, folder: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError, ImportError) as wrong:
        raise ModelError(
            f"the tokenizer of '{ref.id}' cannot be loaded: {_first_line(wrong)}", next_step="Save the tokenizer beside the model."
        ) from wrong


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".") + "."


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and reports of transformers: what matters in them becomes an error of ours."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
