"""A model id to a model in memory: shipped, a local folder, or from the Hugging Face hub. Code from a model is never run."""

import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from engine.hooks.anatomy import Anatomy
from engine.hooks.discovery import find_anatomy
from engine.hooks.inputs import input_device
from engine.hooks.wiring import Wiring
from engine.models.cache import ModelCache, Sizes, device_name
from engine.models.folders import resolve_model
from engine.models.hub import commit_of
from engine.models.memory import GIB, free_bytes, main_memory_bytes, weight_bytes
from engine.models.placement import DeviceMap, Placement, Wish, placed, wish
from engine.models.quantization import quantization_options, refuse_quantized_twice
from engine.models.reading import read_model, read_tokenizer, shortage_told
from engine.models.weights import fingerprint, weight_files
from engine.settings import Settings, read_settings
from engine.spec.base import ModelRef


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A model ready to be asked.

    Attributes:
        model: in evaluation mode, its weights without gradients.
        tokenizer: the model's own.
        device: where token ids go in: that of the embedding, and of all weights where there is no device map.
        fingerprint: SHA-256 over config and weights as stored.
        anatomy: where its sites are.
        ref: what was asked for.
        commit: commit on the hub that the files are of, 40 hex digits; None for shipped models and folders.
        notes: what a person should know of how it was loaded, one sentence each.
        wiring: what is hooked into the model now.
        lock: held while anything is hooked into the model, so that two threads do not mix; take it to call the model directly.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    fingerprint: str
    anatomy: Anatomy
    ref: ModelRef
    commit: str | None = None
    notes: tuple[str, ...] = ()
    lock: RLock = field(default_factory=RLock)
    wiring: Wiring = field(default_factory=Wiring)

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of the tokenizer's special tokens."""
        return tuple(self.tokenizer.all_special_ids)

    @property
    def max_length(self) -> int | None:
        """Longest prompt in tokens that the model has positions for; None where it names no limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)


def load_model(
    ref: ModelRef,
    *,
    device: torch.device | str | None = None,
    device_map: DeviceMap | None = None,
    max_memory: Mapping[int | str, int | str] | None = None,
    offload_dir: Path | None = None,
    data_dir: Path | None = None,
) -> LoadedModel:
    """The model. Those loaded last are kept in memory, as many as the setting `model_cache_gb` allows; threads load one after the other.

    Args:
        ref: which model, in which precision.
        device: `cuda`, `mps`, `cpu`, `auto`: the best one that has room, which the notes tell if it is not the best there is, or `spread`:
            over all devices, the memory and the disk. That of the settings when None.
        device_map: places by module name (a GPU's number, `cpu`, `disk`), or `auto`, `balanced`, `balanced_low_0`, `sequential`.
        max_memory: most that a device map may use by GPU number and `cpu`: bytes, or text such as '10GiB'.
        offload_dir: folder for weights on the disk that must be rewritten; one in the data folder, removed with the model, when None.
        data_dir: where shipped models are kept; that of the settings when None.

    Raises:
        SpecError: the device is unknown, or this machine has none.
        UnknownModel: there is no such model.
        ModelError: its files cannot be used; `ModelTooLarge` if they do not fit.
        UnknownAnatomy: it has no layers that the engine can find.
    """
    settings = read_settings(data_dir=data_dir)
    wanted = wish(device or (settings.device if device_map is None else None), device_map, max_memory, offload_dir)
    folder = resolve_model(ref, settings.data_dir)
    about = (ref, str(folder), _stamps(folder))
    first = _first_key(about, wanted)
    kept = _cache.find(first)
    if kept is not None:
        return kept
    with _cache.making():
        return _cache.find(first) or _placed_and_loaded(about, folder, wanted, settings)


def forget_models() -> None:
    """Lets go of the models that are kept in memory."""
    _cache.clear()


def _sizes_of(loaded: LoadedModel) -> Sizes:
    """Bytes of a model's weights by device; what waits on the disk takes none."""
    sizes = Counter[str]()
    for tensor in {id(one): one for one in (*loaded.model.parameters(), *loaded.model.buffers())}.values():
        if not tensor.is_meta:
            sizes[device_name(tensor.device)] += tensor.untyped_storage().nbytes()
    return dict(sizes)


_cache = ModelCache[LoadedModel](sizes_of=_sizes_of)
_About = tuple[ModelRef, str, Hashable]
_INSTEAD = "instead"
"""Part of the key of a model that runs elsewhere than was tried first: it has a note to tell."""


def _first_key(about: _About, wanted: Wish) -> Hashable:
    """The key of a model at the place that is tried first."""
    return (*about, wanted.key if wanted.device_map is not None else wanted.devices[0])


def _stamps(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of the weights: a folder that was saved again is loaded again."""
    files = [folder / "config.json", *weight_files(folder)]
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file())


def _placed_and_loaded(about: _About, folder: Path, wanted: Wish, settings: Settings) -> LoadedModel:
    """The model, loaded and kept; others are let go of first, so that there is never more in memory than there must be."""
    ref = about[0]
    refuse_quantized_twice(ref, folder)
    where = placed(ref, folder, wanted, partial(_room, about))
    key = (*about, str(where.device), _INSTEAD) if where.notes else _first_key(about, wanted)
    kept = _cache.find(key)
    if kept is not None:
        return kept
    budget = _budget_bytes(settings)
    _cache.shrink(max(0, budget - weight_bytes(folder, ref.dtype, ref.quantization)))
    loaded = _load(ref, folder, where, lambda written: wanted.offload_dir or _own_folder(settings.data_dir, written))
    if budget:
        _cache.keep(key, loaded)
    return loaded


def _room(about: _About, device: torch.device, needed: int) -> int:
    """Bytes that are free for a model on a device; one that is kept there already has its room."""
    kept_there = _cache.find((*about, str(device), _INSTEAD)) is not None
    return needed if kept_there else _cache.make_room(device, needed, free_bytes)


def _budget_bytes(settings: Settings) -> int:
    return main_memory_bytes() // 2 if settings.model_cache_gb is None else int(settings.model_cache_gb * GIB)


def _load(ref: ModelRef, folder: Path, where: Placement, offload: Callable[[ExitStack], Path]) -> LoadedModel:
    """The model from its files. What was written for it is removed if loading fails, and else when the model is gone."""
    stored, tokenizer = fingerprint(folder), read_tokenizer(ref, folder)
    with ExitStack() as written, shortage_told(ref):
        options: dict[str, Any] = {**where.options, **quantization_options(ref, where.device)}
        if where.device is None:
            options["offload_folder"] = offload(written)
        model = read_model(ref, folder, options)
        if "device_map" not in options:
            model.to(where.device)  # type: ignore[arg-type]
        anatomy = find_anatomy(model)
        weakref.finalize(model, written.pop_all().close)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        device=input_device(model),
        fingerprint=stored,
        anatomy=anatomy,
        ref=ref,
        commit=commit_of(folder),
        notes=(*where.notes, *_spread(model)),
    )


def _own_folder(data_dir: Path, written: ExitStack) -> Path:
    """A new folder for weights that are rewritten for the disk, removed with `written`."""
    above = data_dir / "offload"
    above.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=above))
    written.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _spread(model: PreTrainedModel) -> tuple[str, ...]:
    """A sentence on where the parts of a model are, if it is at several places."""
    places = Counter(str(place) for place in (getattr(model, "hf_device_map", None) or {}).values())
    if len(places) < 2 and "disk" not in places:
        return ()
    return (f"The model's parts are spread: {', '.join(f'{count} on {place}' for place, count in sorted(places.items()))}.",)
