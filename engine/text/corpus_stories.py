"""Tiny stories: one person, one animal or thing, one place, a wish and an end. What was said before stays true."""

from engine.text.items import Item, Rng
from engine.text.world import Thing, World, shipped_words, with_article

ANIMALS = ("bird", "mammal", "insect", "reptile")

OPENINGS = (
    "One day {name} went to the {place}. There {name} saw {a}.",
    "Once there was {a_mood} {child} called {name}. {name} lived near the {place} and had {a}.",
    "{name} was {mood}. In the {place} {name} found {a}.",
    "It was a cold day in the {place}. {name} looked for {a} and found one.",
)
MIDDLES_ANIMAL = (
    "The {n} was {colour} and {size}. It could {act} very well.",
    "The {size} {n} had a {part}. {name} liked the {colour} {n}.",
    "The {n} was lost and afraid. {name} gave it some water.",
    "{name} wanted to {act} like the {n}, but {name} could not.",
)
MIDDLES_THING = (
    "The {n} was {colour} and {size}. {name} took it home.",
    "The {size} {n} had a {part}. {name} liked the {colour} {n}.",
    "The {n} was dirty, so {name} made it clean again.",
    "{name} wanted to keep the {n}, but it belonged to {friend}.",
)
ENDS = (
    "In the end {name} and {friend} were happy.",
    "Then {friend} came, and {name} gave the {n} to {friend}.",
    "{name} told {friend} about the {n}. {friend} did not believe any of it.",
    "At night {name} was tired and went to bed.",
    "From that day on {name} came to the {place} every day.",
)


def story(world: World, rng: Rng, held_out: bool) -> Item:
    """A story of four to six sentences; colour, size, parts and abilities are those of the world."""
    names = shipped_words()["names"]["held_out" if held_out else "train"]
    name, friend = rng.sample(names, 2)
    thing = rng.choice(list(world.things.values()))
    middles = MIDDLES_ANIMAL if thing.kind in ANIMALS else MIDDLES_THING
    parts = [rng.choice(OPENINGS), *rng.sample(middles, rng.choice((1, 2))), rng.choice(ENDS)]
    return Item(family="story", prompt=" ".join(parts).format(**_slots(world, rng, thing, name, friend)))


def _slots(world: World, rng: Rng, thing: Thing, name: str, friend: str) -> dict[str, str]:
    _, parts, act = world.kinds[thing.kind]
    mood = rng.choice(shipped_words()["feelings"])
    return {
        "name": name,
        "friend": friend,
        "child": "girl" if name in shipped_words()["girls"] else "boy",
        "mood": mood,
        "a_mood": with_article(mood),
        "a": with_article(thing.name),
        "n": thing.name,
        "colour": thing.colour,
        "size": thing.size,
        "place": thing.place,
        "part": rng.choice(parts),
        "act": act,
    }
