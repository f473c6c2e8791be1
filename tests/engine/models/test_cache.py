"""What stays in memory, on values that are as large as they say."""

import gc
import threading
import time
import weakref
from dataclasses import dataclass, field

import pytest
import torch

from engine.models.cache import ModelCache, device_name

CPU = torch.device("cpu")
Sizes = dict[str, int]


@dataclass(eq=False)
class Weights:
    """A stand-in of a certain size."""

    sizes: Sizes = field(default_factory=dict)


@pytest.fixture
def cache() -> ModelCache[Weights]:
    return ModelCache(sizes_of=lambda weights: weights.sizes)


def _fill(cache: ModelCache[Weights], **bytes_on_cpu: int) -> None:
    for key, size in bytes_on_cpu.items():
        cache.keep(key, Weights({"cpu": size}))


def _kept(cache: ModelCache[Weights], keys: str) -> str:
    with cache._table:
        return "".join(key for key in keys if key in cache._entries)


def test_the_one_used_longest_ago_goes_first(cache: ModelCache[Weights]) -> None:
    _fill(cache, a=4, b=4, c=4)
    assert cache.held_bytes() == 12
    assert cache.find("a") is not None
    cache.shrink(8)
    assert _kept(cache, "abc") == "ac"
    cache.shrink(0)
    assert len(cache) == 0


def test_a_value_in_use_lives_on_and_one_that_is_not_is_freed(cache: ModelCache[Weights]) -> None:
    _fill(cache, used=4, idle=4)
    used, idle = cache.find("used"), weakref.ref(cache.find("idle"))  # type: ignore[arg-type]
    cache.clear()
    gc.collect()
    assert used is not None
    assert idle() is None


def test_room_is_made_only_where_it_helps(cache: ModelCache[Weights]) -> None:
    _fill(cache, a=4, b=4)
    cache.keep("g", Weights({"cuda:0": 100}))

    def free(device: torch.device) -> int:
        return 10 - cache.held_bytes(device_name(device))

    assert cache.make_room(CPU, 2, free) == 2
    assert _kept(cache, "abg") == "abg"
    assert cache.make_room(CPU, 11, free) == 2  # would not fit an empty device either
    assert _kept(cache, "abg") == "abg"
    assert cache.make_room(CPU, 5, free) == 6
    assert _kept(cache, "abg") == "bg"
    assert cache.make_room(CPU, 10, free) == 10
    assert _kept(cache, "abg") == "g"


def test_a_kept_value_is_found_while_another_is_being_made(cache: ModelCache[Weights]) -> None:
    _fill(cache, a=1)
    with cache.making():
        found = []
        thread = threading.Thread(target=lambda: found.append(cache.find("a")))
        thread.start()
        thread.join(5)
    assert found == [cache.find("a")]


def test_values_are_made_one_after_the_other(cache: ModelCache[Weights]) -> None:
    inside, most = [0], [0]

    def make() -> None:
        with cache.making():
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.01)
            inside[0] -= 1

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
