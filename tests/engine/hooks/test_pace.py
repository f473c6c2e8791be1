"""What is chosen, on machines whose cost is a formula."""

import math
from collections.abc import Callable

import pytest

from engine.hooks.pace import Pace, Stretch

Cost = Callable[[int], float]
"""Seconds of a forward pass of so many tokens, per unit of work."""

OVERHEAD: Cost = lambda tokens: 1.0 + 1e-6 * tokens  # noqa: E731
CACHES: Cost = lambda tokens: 0.05 + 1e-3 * tokens * (1 if tokens <= 500 else 1.5)  # noqa: E731
COMPUTE: Cost = lambda tokens: 1e-3 * tokens * math.log2(tokens)  # noqa: E731


def stretch(*, layer: int = 0, tokens: int = 100, guess: int = 1, most: int = 64) -> Stretch:
    return Stretch(kind="z", tokens=tokens, work=12 - layer, guess=guess, most=most)


def go_through(pace: Pace, one: Stretch, variants: int, cost: Cost, *, cold: set[int] | None = None) -> list[int]:
    """Numbers of variants per forward pass; the first of each `cold` number takes much longer."""
    chosen = list[int]()
    while variants:
        chosen.append(pace.choose(one, variants))
        warm_up = 50.0 if cold and chosen[-1] in cold else 0.0
        (cold or set()).discard(chosen[-1])
        pace.took(one, chosen[-1], cost(chosen[-1] * one.tokens) * one.work + warm_up)
        variants -= chosen[-1]
    return chosen


def test_numbers_are_tried_from_below_and_twice_each() -> None:
    assert go_through(Pace(), stretch(), 30, OVERHEAD) == [1, 1, 2, 2, 4, 4, 8, 8]


def test_from_a_guess_both_ways_are_tried() -> None:
    assert go_through(Pace(), stretch(guess=5), 40, COMPUTE) == [4, 4, 8, 8, 2, 2, 1, 1, *[1] * 10]
    assert go_through(Pace(), stretch(guess=100), 256, OVERHEAD)[:6] == [64, 64, 32, 32, 64]


@pytest.mark.parametrize("guess", [1, 4, 64])
@pytest.mark.parametrize(("cost", "best"), [(OVERHEAD, 64), (CACHES, 4), (COMPUTE, 1)])
def test_the_cheapest_is_found_and_kept(cost: Cost, best: int, guess: int) -> None:
    pace = Pace()
    for layer in range(12):
        chosen = go_through(pace, stretch(layer=layer, guess=guess), 64, cost)
    assert set(chosen) == {best}
    assert pace.costs()[best] == 1.0
    assert min(pace.costs().values()) == 1.0


@pytest.mark.parametrize("cost", [OVERHEAD, CACHES])
def test_what_is_slow_only_at_first_does_not_decide(cost: Cost) -> None:
    warm, cold, slow = Pace(), Pace(), {2**power for power in range(7)}
    for layer in range(12):
        expected = go_through(warm, stretch(layer=layer), 64, cost)
        chosen = go_through(cold, stretch(layer=layer), 64, cost, cold=slow)
    assert chosen == expected


def test_what_was_learnt_holds_for_longer_prompts() -> None:
    pace = Pace()
    for layer in range(12):
        go_through(pace, stretch(layer=layer), 64, CACHES)
    assert pace.choose(stretch(tokens=100), 64) == 4
    assert pace.choose(stretch(tokens=200), 64) == 2
    assert pace.choose(stretch(tokens=390), 64) == 1


def test_kinds_of_work_are_not_compared() -> None:
    pace = Pace()
    for layer in range(12):
        go_through(pace, stretch(layer=layer), 64, CACHES)
    assert pace.choose(stretch()._replace(kind="general"), 64) == 1


def test_a_machine_that_changes_is_followed() -> None:
    pace = Pace()
    for layer in range(6):
        go_through(pace, stretch(layer=layer), 64, COMPUTE)
    for layer in range(6):
        chosen = go_through(pace, stretch(layer=layer), 64, OVERHEAD)
    assert set(chosen) == {64}


def test_size_bounds_the_number() -> None:
    pace = Pace()
    for layer in range(12):
        chosen = go_through(pace, stretch(layer=layer, most=3), 64, OVERHEAD)
        assert max(chosen) <= 3


def test_a_fixed_number_is_not_questioned() -> None:
    assert go_through(Pace(fixed=5), stretch(most=2), 12, COMPUTE) == [5, 5, 2]


def test_memory_that_ran_out_is_remembered() -> None:
    pace = Pace(fixed=8)
    pace.ran_out(stretch(), 8)
    assert (pace.choose(stretch(), 64), pace.shortages) == (4, 1)
    assert pace.choose(stretch(tokens=50), 64) == 8
    assert pace.choose(stretch(tokens=300), 64) == 1
    pace.ran_out(stretch(), 3)
    assert pace.choose(stretch(), 64) == 1
