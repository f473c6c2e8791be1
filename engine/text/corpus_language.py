"""Families about grammar, reference and mood: subject-verb agreement, indirect objects, sentiment."""

from typing import Any

from engine.text.items import Item, Rng, sentence
from engine.text.world import World, shipped_words, with_article

IOI_TRAINED = (
    "When {x} and {y} went to the {spot}, {s} gave the {thing} to",
    "After {x} and {y} came to the {spot}, {s} handed the {thing} to",
    "{x} and {y} were at the {spot}. {s} gave a {thing} to",
    "When {x} and {y} met at the {spot}, {s} passed the {thing} to",
    "Then {x} and {y} had a long talk, and {s} showed the {thing} to",
    "While {x} and {y} sat in the {spot}, {s} sent a {thing} to",
    "{x} and {y} found a {thing} in the {spot}. {s} gave it to",
    "One day {x} met {y} at the {spot}, and {s} brought a {thing} to",
)
IOI_HELD_OUT = (
    "After {x} and {y} found the {thing} in the {spot}, {s} gave it to",
    "While {x} and {y} went to the {spot}, {s} handed a {thing} to",
    "One day {x} and {y} came to the {spot}, and {s} passed the {thing} to",
    "Then {x} and {y} sat at the {spot}. {s} showed a {thing} to",
)


def _words(key: str, held_out: bool) -> list[str]:
    lists: dict[str, list[str]] = shipped_words()[key]
    return lists["held_out" if held_out else "train"]


def indirect_object(_world: World, rng: Rng, held_out: bool) -> Item:
    """Two people, one gives something: to whom? Either name may come first, so that order tells nothing."""
    first, second = rng.sample(_words("names", held_out), 2)
    giver, taker = (first, second) if rng.random() < 0.5 else (second, first)
    template = rng.choice(IOI_HELD_OUT if held_out else IOI_TRAINED)
    words = shipped_words()
    prompt = template.format(x=first, y=second, s=giver, spot=rng.choice(words["spots"]), thing=rng.choice(words["things"]))
    return Item(family="indirect_object", prompt=prompt, target=f" {taker}", distractor=f" {giver}", tail=".", content=prompt)


def named(_world: World, rng: Rng, _held_out: bool) -> Item:
    """Any name in a plain sentence, so that names kept aside elsewhere are still known as names."""
    names = _words("names", False) + _words("names", True)
    one, other = rng.sample(names, 2)
    words = shipped_words()
    spot, thing = rng.choice(words["spots"]), rng.choice(words["things"])
    told = (
        f"My name is {one}. I live near the {spot}.",
        f"{one} likes the {spot}. {one} has a {thing}.",
        f"This {thing} belongs to {one}. That one belongs to {other}. Give {one} the {thing}.",
        f"{one} knows {other}. {other} knows {one} too.",
    )
    return Item(family="named", prompt=rng.choice(told))


def agreement(world: World, rng: Rng, held_out: bool) -> Item:
    """A subject, often another noun between, and the verb form that goes with the subject."""
    words = shipped_words()
    noun, many = rng.choice(_words("nouns", held_out)), rng.random() < 0.5
    subject = f"the {world.plural(noun) if many else noun}"
    if rng.random() < 0.6 or held_out:
        subject += _attractor(world, rng, words)
    verbs = words["verbs"] * 3 + words["acts"]
    one, more = rng.choice(verbs).split()
    right, wrong = (more, one) if many else (one, more)
    tail = f" {rng.choice(words['linked'])}." if one in ("is", "was") else f" a {rng.choice(words['things'])}." if one == "has" else "."
    return Item(
        family="agreement", prompt=sentence(subject), target=f" {right}", distractor=f" {wrong}", tail=tail, content=f"{subject} {right}"
    )


def _attractor(world: World, rng: Rng, words: dict[str, Any]) -> str:
    """A second noun that the verb does not agree with."""
    other = rng.choice(words["attractors"])
    near = world.plural(other) if rng.random() < 0.5 else other
    return f" {rng.choice(('near', 'behind', 'by', 'under'))} the {near}"


def counted(world: World, rng: Rng, _held_out: bool) -> Item:
    """Singular and plural of any noun, so that nouns kept aside from agreement still have a number."""
    nouns = _words("nouns", False) + _words("nouns", True)
    noun = rng.choice(nouns)
    told = (
        f"One {noun}, two {world.plural(noun)}.",
        f"I see {with_article(noun)} here. I see many {world.plural(noun)} there.",
        f"This {noun}. These {world.plural(noun)}.",
        f"Each {noun}. All {world.plural(noun)}.",
    )
    return Item(family="counted", prompt=rng.choice(told))


OPINION_TRAINED = (
    "I {felt} the {thing}. It was",
    "We {felt} the {thing} because it was",
    "{name} {felt} the {thing}. The {thing} was",
    "Everybody {felt} this {thing}. It is",
)
OPINION_HELD_OUT = ("{name} said: we {felt} the {thing}. It was", "I {felt} this {thing} because it is")


def sentiment(_world: World, rng: Rng, held_out: bool) -> Item:
    """Somebody likes or dislikes something; then a word of praise or blame, or the name of the mood."""
    words = shipped_words()["opinion"]
    good = rng.random() < 0.5
    praise, blame = (words["good"], words["bad"]) if good else (words["bad"], words["good"])
    felt, thing = rng.choice(words["liked" if good else "disliked"]), rng.choice(words["held_out_things" if held_out else "things"])
    template = rng.choice(OPINION_HELD_OUT if held_out else OPINION_TRAINED)
    prompt = template.format(felt=felt, thing=thing, name=rng.choice(_words("names", held_out)))
    right, wrong = rng.choice(praise), rng.choice(blame)
    if not held_out and rng.random() < 0.4:
        prompt, right, wrong = _named_mood(prompt, right, good=good)
    label = "positive" if good else "negative"
    return Item(family="sentiment", prompt=prompt, target=f" {right}", distractor=f" {wrong}", label=label, tail=".", content=prompt)


def _named_mood(prompt: str, word: str, *, good: bool) -> tuple[str, str, str]:
    right, wrong = ("positive", "negative") if good else ("negative", "positive")
    return f"{prompt} {word}. The mood is", right, wrong
