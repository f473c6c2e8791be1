"""Loaded models kept in memory for the next run that asks for the same, within a budget. The one used longest ago goes first."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import torch

Kept = TypeVar("Kept")
Sizes = dict[str, int]
"""Bytes by device, named as by `device_name`."""


@dataclass(slots=True)
class _Entry(Generic[Kept]):
    value: Kept
    sizes: Sizes


@dataclass(slots=True)
class ModelCache(Generic[Kept]):
    """Values by key. A value that was let go of lives on where it is in use; the budget counts what is kept here.

    Attributes:
        sizes_of: bytes that a value takes, by device.
    """

    sizes_of: Callable[[Kept], Sizes]
    _entries: OrderedDict[Hashable, _Entry[Kept]] = field(default_factory=OrderedDict[Hashable, _Entry[Kept]])
    _table: Lock = field(default_factory=Lock)
    _turn: Lock = field(default_factory=Lock)

    def find(self, key: Hashable) -> Kept | None:
        """The value, which is then the one used last. Does not wait for a value that is being made."""
        with self._table:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
            return entry.value if entry else None

    @contextmanager
    def making(self) -> Iterator[None]:
        """Inside the block no other thread makes a value: models are loaded one after the other."""
        with self._turn:
            yield

    def keep(self, key: Hashable, value: Kept) -> None:
        """Keeps a value as the one used last."""
        with self._table:
            self._entries[key] = _Entry(value, self.sizes_of(value))
            self._entries.move_to_end(key)

    def shrink(self, budget_bytes: int) -> None:
        """Lets go of values until the rest is within the budget."""
        with self._table:
            while self._entries and self._held() > budget_bytes:
                self._entries.popitem(last=False)

    def held_bytes(self, device: str | None = None) -> int:
        """What the kept values take, on one device or on all."""
        with self._table:
            return self._held(device)

    def make_room(self, device: "torch.device", needed: int, free: Callable[["torch.device"], int]) -> int:
        """Bytes free on a device, after letting go of values there one by one if that makes `needed` bytes free."""
        here, name = free(device), device_name(device)
        if needed > here + self.held_bytes(name):
            return here
        while needed > here and self._let_go_of_one(name):
            _give_back()
            here = free(device)
        return here

    def clear(self) -> None:
        """Lets go of all values."""
        with self._table:
            self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)

    def _held(self, device: str | None = None) -> int:
        every = [entry.sizes for entry in self._entries.values()]
        return sum(size for sizes in every for name, size in sizes.items() if device in (None, name))

    def _let_go_of_one(self, device: str) -> bool:
        with self._table:
            key = next((key for key, entry in self._entries.items() if entry.sizes.get(device)), None)
            if key is not None:
                del self._entries[key]
        return key is not None


def device_name(device: "torch.device") -> str:
    """One name per device: `cuda` is the first of them."""
    return f"cuda:{device.index or 0}" if device.type == "cuda" else device.type


def _give_back() -> None:
    """What was let go of is really freed: modules refer to each other in circles, and CUDA keeps a pool of its own."""
    from engine.hooks.shortage import give_memory_back

    give_memory_back()
