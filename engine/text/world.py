"""The closed world of `philab-micro`: its things, what is true of them, and English for it. Imports without torch."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

RELATIONS = ("kind", "colour", "size", "place", "part", "act", "above")
"""What can be said of a thing. `above` is the kind of its kind: a robin is an animal, because it is a bird."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """A thing of the world; it has exactly one kind, colour, size and place."""

    name: str
    kind: str
    colour: str
    size: str
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A statement about a thing, true or false: `relation` of `subject` is `value`."""

    subject: str
    relation: str
    value: str


class World:
    """Things, kinds and words, as `resources/corpus/world.yaml` lists them."""

    def __init__(self, table: dict[str, Any]) -> None:
        self.kinds: dict[str, tuple[str, tuple[str, ...], str]] = {k: (v[0], tuple(v[1]), v[2]) for k, v in table["kinds"].items()}
        self.above: dict[str, str] = dict(table["above"])
        self.plurals: dict[str, str] = dict(table["plurals"])
        self.things = {thing.name: thing for kind, lines in table["members"].items() for thing in (_thing(kind, line) for line in lines)}
        self.colours, self.sizes, self.places = (tuple(table[key]) for key in ("colours", "sizes", "places"))
        self.synonyms, self.antonyms = ([tuple(pair.split()) for pair in table[key]] for key in ("synonyms", "antonyms"))

    def true_values(self, subject: str, relation: str) -> tuple[str, ...]:
        """All values for which the statement about the subject is true."""
        thing = self.things[subject]
        higher, parts, act = self.kinds[thing.kind]
        match relation:
            case "part":
                return parts
            case "act":
                return (act,)
            case "above":
                return (higher, self.above[higher])
            case _:
                return (getattr(thing, relation),)

    def false_values(self, subject: str, relation: str) -> tuple[str, ...]:
        """All values of the same sort for which the statement about the subject is false."""
        everything = {
            "kind": tuple(self.kinds),
            "colour": self.colours,
            "size": self.sizes,
            "place": self.places,
            "part": tuple(dict.fromkeys(part for _, parts, _ in self.kinds.values() for part in parts)),
            "act": tuple(dict.fromkeys(act for _, _, act in self.kinds.values())),
            "above": tuple(dict.fromkeys([*self.above, *self.above.values()])),
        }[relation]
        true = self.true_values(subject, relation)
        return tuple(value for value in everything if value not in true)

    def is_true(self, fact: Fact) -> bool:
        """Whether the fact holds in this world."""
        return fact.value in self.true_values(fact.subject, fact.relation)

    def plural(self, noun: str) -> str:
        """The plural of a noun of this world."""
        return self.plurals.get(noun, noun + "s")


def _thing(kind: str, line: str) -> Thing:
    name, colour, size, place = line.split()
    return Thing(name=name, kind=kind, colour=colour, size=size, place=place)


def with_article(noun: str) -> str:
    """`a robin`, `an owl`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def kept_aside(*key: str, share: float) -> bool:
    """Whether what the key names is kept out of training; the same answer everywhere, for about this share of keys."""
    digest = hashlib.sha256("\x1f".join(key).encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


@cache
def shipped_world() -> World:
    """The world that ships with philab."""
    return World(_resource("world.yaml"))


@cache
def shipped_words() -> dict[str, Any]:
    """Word lists of the language families, as `resources/corpus/language.yaml` gives them."""
    return _resource("language.yaml")


def _resource(name: str) -> dict[str, Any]:
    return yaml.safe_load((files("engine") / "resources" / "corpus" / name).read_text(encoding="utf-8"))
