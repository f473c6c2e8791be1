"""The generated corpus of `philab-micro`: endless, and the same for the same seed everywhere. Imports without torch."""

import hashlib
from collections.abc import Callable, Iterator
from itertools import accumulate
from random import Random

from engine.text.corpus_facts import plain_fact, true_false, word_pair, word_question
from engine.text.corpus_language import agreement, counted, indirect_object, named, sentiment
from engine.text.corpus_patterns import arithmetic, context_letter, context_number, context_word, repeated
from engine.text.corpus_stories import story
from engine.text.items import Item, Rng
from engine.text.world import World, shipped_world

Family = Callable[[World, Rng, bool], Item]

MIXTURE: dict[str, tuple[Family, float]] = {
    "plain_fact": (plain_fact, 0.19),
    "true_false": (true_false, 0.24),
    "word_question": (word_question, 0.06),
    "word_pair": (word_pair, 0.05),
    "indirect_object": (indirect_object, 0.10),
    "named": (named, 0.02),
    "agreement": (agreement, 0.08),
    "counted": (counted, 0.02),
    "sentiment": (sentiment, 0.04),
    "repeated": (repeated, 0.06),
    "arithmetic": (arithmetic, 0.04),
    "context_number": (context_number, 0.025),
    "context_letter": (context_letter, 0.025),
    "context_word": (context_word, 0.025),
    "story": (story, 0.025),
}
"""Family -> its maker, and its share of the documents."""

_NAMES = tuple(MIXTURE)
_CUMULATIVE = tuple(accumulate(share for _, share in MIXTURE.values()))


def documents(seed: str, count: int | None = None) -> Iterator[Item]:
    """Training documents for a seed, `count` of them or without end. Nothing held out is among them."""
    rng, world, made = Random(f"train:{seed}"), shipped_world(), 0
    while count is None or made < count:
        name = rng.choices(_NAMES, cum_weights=_CUMULATIVE)[0]
        yield MIXTURE[name][0](world, rng, False)
        made += 1


def items(family: str, seed: str, count: int, *, held_out: bool = True, or_fewer: bool = False) -> list[Item]:
    """`count` different items of one family: held-out ones, or ones as in training.

    Raises:
        ValueError: the family does not have that many different items, and fewer will not do.
    """
    rng, world = Random(f"{'held_out' if held_out else 'train'}:{family}:{seed}"), shipped_world()
    found: dict[str, Item] = {}
    for _ in range(count * 50):
        item = MIXTURE[family][0](world, rng, held_out)
        found.setdefault(item.prompt, item)
        if len(found) == count:
            return list(found.values())
    if or_fewer:
        return list(found.values())
    raise ValueError(f"family '{family}' has only about {len(found)} different items; expected {count}")


def corpus_sha256(seed: str = "0", count: int = 2000) -> str:
    """Hash of the first documents of a seed; tells two versions of the corpus apart."""
    digest = hashlib.sha256()
    for item in documents(seed, count):
        digest.update(item.text.encode() + b"\n")
    return digest.hexdigest()
