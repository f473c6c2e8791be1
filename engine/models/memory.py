"""Whether a model fits, asked before it is loaded."""

from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from engine.errors import ModelTooLarge
from engine.models.weights import stored_tensors, weight_files
from engine.spec.base import Dtype

if TYPE_CHECKING:
    import torch

BYTES: dict[Dtype, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
GIB = 2**30
CGROUP = Path("/sys/fs/cgroup")


def weight_bytes(folder: Path, dtype: Dtype) -> int:
    """Bytes that the weights in a folder take once loaded in `dtype`."""
    return sum(tensor.elements for tensor in stored_tensors(weight_files(folder))) * BYTES[dtype]


def free_bytes(device: "torch.device") -> int:
    """Memory that is free on a device; for a CPU also within the container's limit."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([psutil.virtual_memory().available, *_left_in_container()])


def refuse_too_large(folder: Path, *, dtype: Dtype, device: "torch.device", name: str) -> None:
    """Refuses a model whose weights alone do not fit.

    Raises:
        ModelTooLarge: they do not; the text has both sizes.
    """
    needed, free = weight_bytes(folder, dtype), free_bytes(device)
    if needed > free:
        raise ModelTooLarge(
            f"'{name}' in {dtype} takes {needed / GIB:.1f} GiB, but {free / GIB:.1f} GiB are free on {device}.",
            next_step="Choose a smaller model, another device, or dtype bfloat16." if dtype == "float32" else "Choose a smaller model.",
        )


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
