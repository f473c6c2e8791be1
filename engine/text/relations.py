"""Pairs of English words by semantic relation, as WordNet names them. Imports without torch."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from engine.errors import DatasetError


class WordPair(NamedTuple):
    """Two words; the relation's `reading` says how the second stands to the first."""

    first: str
    second: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """All pairs of one relation.

    A symmetric relation lists each pair once. `inverse` names the relation that holds the other way round: if bird is a hypernym of
    robin, robin is a hyponym of bird.
    """

    name: str
    reading: str
    pairs: tuple[WordPair, ...]
    inverse: str


@cache
def shipped_relations() -> dict[str, Relation]:
    """The relations that come with philab, by name: synonym, antonym, hypernym, hyponym, meronym, holonym."""
    text = (files("engine") / "resources" / "relations.json").read_text(encoding="utf-8")
    return {name: _relation(name, values) for name, values in json.loads(text)["relations"].items()}


def relation(name: str) -> Relation:
    """One shipped relation.

    Raises:
        DatasetError: there is none of that name.
    """
    known = shipped_relations()
    if name not in known:
        raise DatasetError(f"there is no relation '{name}'; expected one of: {', '.join(known)}.")
    return known[name]


def _relation(name: str, values: dict[str, object]) -> Relation:
    pairs = tuple(WordPair(*pair) for pair in values["pairs"])  # type: ignore[attr-defined]
    return Relation(name=name, reading=str(values["reading"]), pairs=pairs, inverse=str(values.get("inverse", name)))
