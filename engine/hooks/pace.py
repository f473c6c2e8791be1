"""How many variants share a forward pass: tried out on the work itself, and kept for the rest of the run.

Few variants at once waste the time that each forward pass costs by itself; many at once leave the processor's caches, or the memory.
Where the best lies depends on model, machine and prompts. So a guess is followed by twice as many, and by half as many, for as long as
that is not dearer; each number is tried at least twice, because whatever is done for the first time is slow. Times are compared per
token and per unit of work, and only within one kind of work. What counts for the machine is the number of tokens in a forward pass, so
that what was learnt on one batch holds for the next one, whatever the length of its prompts.
"""

import math
from collections import defaultdict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

TRIES = 2
"""Forward passes before a number of variants is judged."""
REMEMBERED = 3
"""Forward passes whose best counts; older ones are forgotten, so that the choice follows the machine."""
NO_DEARER = 1.05
"""The search goes on behind a number that costs up to so many times the best: smaller differences are noise."""


class Stretch(NamedTuple):
    """Variants of equal cost.

    Attributes:
        kind: stretches of one kind are compared with each other.
        tokens: of one variant.
        work: what is redone for each token; only ratios within a kind count.
        guess: variants per forward pass to begin with, when nothing is known.
        most: variants that may share a forward pass, by their size.
    """

    kind: Hashable
    tokens: int
    work: float
    guess: int
    most: int


@dataclass(slots=True)
class Pace:
    """What one run has learnt.

    Attributes:
        fixed: variants per forward pass, whatever is measured; runs are then equal to the bit.
        shortages: how often memory ran out.
    """

    fixed: int | None = None
    shortages: int = 0
    _ceiling: float = math.inf
    _heaviest: Stretch | None = None
    _spent: defaultdict[tuple[Hashable, int], deque[float]] = field(
        default_factory=partial(defaultdict[tuple[Hashable, int], deque[float]], partial(deque[float], maxlen=REMEMBERED))
    )

    def most(self, stretch: Stretch) -> int:
        """Variants that fit into a forward pass as far as is known; at least 1."""
        return max(1, int(min(self.fixed or stretch.most, self._ceiling / stretch.tokens)))

    def choose(self, stretch: Stretch, left: int) -> int:
        """How many of the variants that are left go into the next forward pass."""
        most = self.most(stretch)
        return min(left, most if self.fixed else self._wanted(stretch, most))

    def took(self, stretch: Stretch, variants: int, seconds: float) -> None:
        """Learns from a forward pass."""
        if variants.bit_count() > 1:
            return  # what was left over at an end; nobody asks what that costs
        if self._heaviest is None or stretch.work >= self._heaviest.work:
            self._heaviest = stretch
        self._spent[stretch.kind, _size(stretch, variants)].append(seconds / (variants * stretch.tokens * stretch.work))

    def ran_out(self, stretch: Stretch, variants: int) -> None:
        """Memory did not suffice for so many variants: half of their tokens are the most from now on."""
        self.shortages += 1
        self._ceiling = variants * stretch.tokens / 2

    def costs(self) -> dict[int, float]:
        """Variants per forward pass -> cost of a variant as a multiple of the cheapest, for the work that takes most time."""
        if self._heaviest is None:
            return {}
        known = self._known(self._heaviest, self._heaviest.most)
        cheapest = min(known.values(), default=1.0)
        return {variants: cost / cheapest for variants, cost in known.items()}

    def _wanted(self, stretch: Stretch, most: int) -> int:
        known = self._known(stretch, most)
        if not known:
            return min(_power_of_two(stretch.guess), _power_of_two(most))
        best = min(known, key=known.__getitem__)
        numbers = _powers_of_two(most)
        for neighbours in ([number for number in numbers if number > best], [number for number in reversed(numbers) if number < best]):
            for number in neighbours:
                if number not in known:
                    return number
                if known[number] > NO_DEARER * known[best]:
                    break
        return best

    def _known(self, stretch: Stretch, most: int) -> dict[int, float]:
        """Powers of two that were tried often enough -> their cost."""
        spent = {variants: self._spent.get((stretch.kind, _size(stretch, variants)), ()) for variants in _powers_of_two(most)}
        return {variants: min(times) for variants, times in spent.items() if len(times) >= TRIES}


def _powers_of_two(most: int) -> list[int]:
    return [2**power for power in range(most.bit_length())]


def _power_of_two(most: int) -> int:
    """The largest one that is not above `most`."""
    return _powers_of_two(most)[-1]


def _size(stretch: Stretch, variants: int) -> int:
    """Tokens of a forward pass, as the nearest power of two."""
    return round(math.log2(variants * stretch.tokens))
