"""The device that tensors live on, and what the machine is. Imports torch only when asked."""

import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from engine.errors import SpecError
from engine.provenance import DeviceType, Hardware

if TYPE_CHECKING:
    import torch

GIB = 2**30
AUTO = "auto"


def pick_device(wanted: str | None = None) -> "torch.device":
    """The device asked for, or for `auto` the best one there is: cuda, then mps, then cpu.

    Raises:
        SpecError: the wanted device is unknown, or this machine has none.
    """
    import torch

    here = device_types()
    if wanted is None or wanted == AUTO:
        return torch.device(here[0])
    try:
        device = torch.device(wanted)
    except RuntimeError:
        device = None
    if device is None or device.type not in here or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise SpecError(f"device '{wanted}' cannot be used here; expected one of: {', '.join(here)}.")
    return device


def device_types() -> list[DeviceType]:
    """Types of device that work here, the fastest first; the last one is the CPU."""
    import torch

    found: list[DeviceType] = []
    if torch.cuda.is_available():
        found.append("cuda")
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def detect_hardware(device: "torch.device") -> Hardware:
    """The machine as it goes into a run's provenance: no host name, no user, no paths."""
    import torch

    on_gpu = device.type == "cuda"
    card = torch.cuda.get_device_properties(device) if on_gpu else None
    return Hardware(
        device=device.type,  # type: ignore[arg-type]
        name=(card.name if card else _processor())[:200],
        vram_gb=round(card.total_memory / GIB, 1) if card else None,
        cores=_cores(),
        memory_gb=round(psutil.virtual_memory().total / GIB, 1),
        system=f"{platform.system()} {platform.machine()}",
    )


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    """The processor's name; Linux keeps it in a file, elsewhere Python knows it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"
