"""How much memory a model takes, said before it is loaded, and how much there is. Reads headers and configs; imports no torch by itself."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from engine.errors import UnknownModel
from engine.model_presets import preset_of
from engine.models.folders import local_folder
from engine.models.weights import StoredTensor, stored_tensors, weight_files
from engine.spec.base import Dtype, ModelRef, Quantization

if TYPE_CHECKING:
    import torch

BYTES: dict[Dtype, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
QUANTIZED_BYTES: dict[Quantization, float] = {"int8": 1.0, "nf4": 0.5 + 4 / 64, "fp4": 0.5 + 4 / 64}
"""Bytes per weight of a layer's matrices; 4 bits also need a float32 scale for each block of 64."""
ROW_SCALE_BYTES = 4
"""8 bits need a float32 scale for each row of a matrix."""
STAYS_DENSE = ("embed", "wte", "wpe", "lm_head")
"""Parts of the names of matrices that bitsandbytes leaves as they are."""
GIB = 2**30
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Memory that a model will take, in bytes.

    Attributes:
        weights_bytes: the weights in the precision asked for.
        cache_bytes: keys and values of all layers while it generates; None where the shape is not known before the download.
        activation_bytes: the widest moment of a forward pass, logits in float32 included, to about a factor of two; None likewise.
    """

    weights_bytes: int
    cache_bytes: int | None = None
    activation_bytes: int | None = None

    @property
    def total_bytes(self) -> int:
        """All of it together, as far as it is known."""
        return self.weights_bytes + (self.cache_bytes or 0) + (self.activation_bytes or 0)


class _Shape(NamedTuple):
    """Widths that memory depends on."""

    layers: int
    d_model: int
    heads: int
    kv_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int


def estimate_memory(ref: ModelRef, *, batch: int = 1, length: int = 512, data_dir: Path | None = None) -> MemoryEstimate:
    """What a model takes in the precision of `ref`; downloads nothing.

    Args:
        ref: the model; its files are read if they are here, else its short-name entry.
        batch: rows of a forward pass.
        length: tokens per row, the generated ones included.
        data_dir: where shipped models are kept.

    Raises:
        UnknownModel: it is not on this machine and has no short name.
        ModelError: its files are damaged.
    """
    folder = local_folder(ref, data_dir)
    if folder is None:
        return MemoryEstimate(weights_bytes=_preset_bytes(ref))
    weights, shape = weight_bytes(folder, ref.dtype, ref.quantization), _shape(folder)
    if shape is None:
        return MemoryEstimate(weights_bytes=weights)
    tokens, width = batch * length, BYTES[ref.dtype]
    return MemoryEstimate(
        weights_bytes=weights,
        cache_bytes=2 * shape.layers * shape.kv_heads * shape.d_head * tokens * width,
        activation_bytes=tokens * (width * (10 * shape.d_model + 5 * shape.d_mlp + 2 * shape.heads * length) + 4 * shape.d_vocab),
    )


def weight_bytes(folder: Path, dtype: Dtype, quantization: Quantization | None = None) -> int:
    """Bytes that the weights in a folder take once loaded.

    Raises:
        ModelError: they are missing or damaged.
    """
    return sum(_sizes(folder, dtype, quantization).values())


def bytes_by_place(folder: Path, device_map: Mapping[str, int | str], dtype: Dtype, quantization: Quantization | None) -> dict[str, int]:
    """The same, per place of a device map; weights that no entry names are not counted."""
    found = dict[str, int]()
    for name, size in _sizes(folder, dtype, quantization).items():
        above = [module for module in device_map if not module or name == module or name.startswith(f"{module}.")]
        if above:
            place = str(device_map[max(above, key=len)])
            found[place] = found.get(place, 0) + size
    return found


def free_bytes(device: "torch.device") -> int:
    """Memory that is free on a device, for CUDA with what torch holds in store; for a CPU also within the container's limit."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min([psutil.virtual_memory().available, *_left_in_container()])


def main_memory_bytes() -> int:
    """Main memory that this process may use: the machine's, or the container's limit."""
    limits = [psutil.virtual_memory().total]
    with suppress(OSError, ValueError):
        limits.append(int((CGROUP / "memory.max").read_text()))
    return min(limits)


def stored_config(folder: Path) -> dict[str, Any]:
    """The config of a model in a folder; empty where it cannot be read, which loading will tell."""
    with suppress(OSError, ValueError):
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return values if isinstance(values, dict) else {}
    return {}


def _sizes(folder: Path, dtype: Dtype, quantization: Quantization | None) -> dict[str, int]:
    """Bytes in memory of each stored tensor; a head that shares the embedding's weights costs nothing."""
    config = stored_config(folder)
    tied, as_stored = bool(config.get("tie_word_embeddings")), "quantization_config" in config
    tensors = [tensor for tensor in stored_tensors(weight_files(folder)) if not (tied and tensor.name.startswith("lm_head."))]
    return {tensor.name: tensor.stop - tensor.start if as_stored else _size(tensor, dtype, quantization) for tensor in tensors}


def _size(tensor: StoredTensor, dtype: Dtype, quantization: Quantization | None) -> int:
    matrix = len(tensor.shape) == 2 and not any(part in tensor.name for part in STAYS_DENSE)
    if quantization is None or not matrix:
        return tensor.elements * BYTES[dtype]
    scales = ROW_SCALE_BYTES * tensor.shape[0] if quantization == "int8" else 0
    return int(tensor.elements * QUANTIZED_BYTES[quantization]) + scales


def _preset_bytes(ref: ModelRef) -> int:
    preset = preset_of(ref.id)
    if preset is None:
        raise UnknownModel(f"the size of '{ref.id}' is not known before it is downloaded.", next_step="Load it once, or name its folder.")
    return preset_bytes(preset.parameters, preset.dense_parameters, ref.dtype, ref.quantization)


def preset_bytes(parameters: int, dense: int, dtype: Dtype, quantization: Quantization | None = None) -> int:
    """Bytes of that many parameters, of which `dense` stay dense under quantisation; the scales of 8 bits are left out."""
    per_weight = BYTES[dtype] if quantization is None else QUANTIZED_BYTES[quantization]
    return int(dense * BYTES[dtype] + (parameters - dense) * per_weight)


def _shape(folder: Path) -> _Shape | None:
    config = stored_config(folder)
    config = {**config, **config.get("text_config", {})}
    layers, d_model, heads, vocabulary = (
        _first_number(config, *names)
        for names in (("num_hidden_layers", "n_layer"), ("hidden_size", "n_embd"), ("num_attention_heads", "n_head"), ("vocab_size",))
    )
    if layers is None or d_model is None or heads is None or vocabulary is None:
        return None
    return _Shape(
        layers=layers,
        d_model=d_model,
        heads=heads,
        kv_heads=_first_number(config, "num_key_value_heads") or heads,
        d_head=_first_number(config, "head_dim") or d_model // heads,
        d_mlp=_first_number(config, "intermediate_size", "n_inner") or 4 * d_model,
        d_vocab=vocabulary,
    )


def _first_number(config: Mapping[str, Any], *names: str) -> int | None:
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)


def _left_in_container() -> list[int]:
    """Memory left under the cgroup's limit, where there is one; memory of cached files can be had back."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        if limit == "max":
            return []
        used = int((CGROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return [int(limit) - used + int(statistics.get("inactive_file", 0))]
    except (OSError, ValueError):
        return []
