"""Where a model's weights go: the device asked for, the best one that has room, or several by a device map."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.device import AUTO, device_types, pick_device
from engine.errors import ModelError, ModelTooLarge
from engine.models.memory import GIB, bytes_by_place, weight_bytes
from engine.spec.base import ModelRef

if TYPE_CHECKING:
    import torch

SPREAD = "spread"
"""The device that means: over all accelerators, then main memory, then the disk."""
DeviceMap = str | Mapping[str, int | str]
MakeRoom = Callable[["torch.device", int], int]
"""From a device and the bytes that are needed there to the bytes that are free there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Where somebody wants a model.

    Attributes:
        devices: types or names of devices, in the order in which they are tried.
        device_map: for several devices at once: `auto`, or place by module name; then `devices` is not looked at.
        max_memory: most that a device map may use, by GPU number, `cpu`; bytes or text such as '10GiB'.
        offload_dir: folder for weights that a device map puts on the disk and that must be rewritten for it.
    """

    devices: tuple[str, ...] = ()
    device_map: DeviceMap | None = None
    max_memory: Mapping[int | str, int | str] | None = None
    offload_dir: Path | None = None

    @property
    def key(self) -> str:
        """Text that is equal for equal wishes."""
        placed = dict(self.device_map) if isinstance(self.device_map, Mapping) else self.device_map
        return repr((placed, self.max_memory and dict(self.max_memory), self.offload_dir))


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a model goes.

    Attributes:
        device: the one device; None where a device map is followed.
        options: arguments of `from_pretrained` that follow from it.
        notes: what the person should know of it, one sentence each.
    """

    device: "torch.device | None" = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    notes: tuple[str, ...] = ()


def wish(
    device: "torch.device | str | None",
    device_map: DeviceMap | None,
    max_memory: Mapping[int | str, int | str] | None,
    offload_dir: Path | None,
) -> Wish:
    """What these arguments of `load_model` mean.

    Raises:
        SpecError: the device is unknown, or this machine has none.
        ModelError: they contradict each other.
    """
    if device == SPREAD:
        device, device_map = None, device_map or "auto"
    if device_map is None:
        if max_memory or offload_dir:
            raise ModelError("'max_memory' and 'offload_dir' belong to a device map.", next_step="Give 'device_map' too, as in 'auto'.")
        chosen = tuple(device_types()) if device is None or device == AUTO else (str(pick_device(str(device))),)
        return Wish(devices=chosen)
    if device is not None:
        raise ModelError(f"device '{device}' and a device map were given; expected one of them.", next_step="Leave one out.")
    return Wish(device_map=device_map, max_memory=max_memory, offload_dir=offload_dir)


def placed(ref: ModelRef, folder: Path, wanted: Wish, make_room: MakeRoom) -> Placement:
    """Where the model goes.

    Raises:
        ModelTooLarge: the weights do not fit where they may go; the text has both sizes.
    """
    if wanted.device_map is not None:
        return _by_map(ref, folder, wanted, wanted.device_map, make_room)
    needed = weight_bytes(folder, ref.dtype, ref.quantization)
    return on_one_device(needed, wanted.devices, make_room, ref)


def on_one_device(needed: int, devices: Sequence[str], make_room: MakeRoom, ref: ModelRef) -> Placement:
    """The first device with room. A sentence says so where it is not the first one tried.

    Raises:
        ModelTooLarge: none has; the text has both sizes.
    """
    import torch

    too_small = list[str]()
    for name in devices:
        device = torch.device(name)
        free = make_room(device, needed)
        if needed <= free:
            return Placement(device=device, notes=_said(device, needed, too_small))
        too_small.append(f"{free / GIB:.1f} GiB are free on {name}")
    raise _too_large(ref, needed, ", ".join(too_small))


def _said(device: "torch.device", needed: int, too_small: Sequence[str]) -> tuple[str, ...]:
    if not too_small:
        return ()
    return (f"The model runs on the {device.type.upper()}: its weights take {needed / GIB:.1f} GiB, but {', '.join(too_small)}.",)


def _by_map(ref: ModelRef, folder: Path, wanted: Wish, device_map: DeviceMap, make_room: MakeRoom) -> Placement:
    """A map by name finds its own places, the disk being the last; in a map by module each place must have room."""
    import torch

    if isinstance(device_map, Mapping):
        _refuse_nested(device_map)
        for place, needed in bytes_by_place(folder, device_map, ref.dtype, ref.quantization).items():
            if place != "disk":
                device = torch.device("cuda", int(place)) if place.isdecimal() else torch.device(place)
                free = make_room(device, needed)
                if needed > free:
                    raise _too_large(ref, needed, f"{free / GIB:.1f} GiB are free on {place}", what="the part of ")
        device_map = dict(device_map)
    limits = {"max_memory": dict(wanted.max_memory)} if wanted.max_memory else {}
    return Placement(options={"device_map": device_map, **limits})


def _refuse_nested(device_map: Mapping[str, int | str]) -> None:
    """Refuses entries inside each other: of two, accelerate follows the outer one and then misses weights of the inner one."""
    for inner in device_map:
        outer = next((name for name in device_map if name != inner and (not name or inner.startswith(f"{name}."))), None)
        if outer is not None:
            raise ModelError(
                f"the device map names '{outer or 'the whole model'}' and, inside it, '{inner}'.",
                next_step="Name modules that do not contain each other.",
            )


def _too_large(ref: ModelRef, needed: int, free: str, what: str = "") -> ModelTooLarge:
    stored = f"{ref.dtype}, {ref.quantization}" if ref.quantization else ref.dtype
    smaller = "" if ref.quantization else ", quantization nf4" if ref.dtype != "float32" else ", dtype bfloat16, quantization nf4"
    return ModelTooLarge(
        f"{what}'{ref.id}' in {stored} takes {needed / GIB:.1f} GiB, but {free}.",
        next_step=f"Choose a smaller model, another device{smaller}, or device 'spread', which uses the disk as well.",
    )
