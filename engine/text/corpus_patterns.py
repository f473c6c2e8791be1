"""Families that are solved by looking back or by counting: repeated words, arithmetic, questions on a context."""

from functools import cache

from engine.text.items import Item, Rng
from engine.text.world import World, shipped_words, shipped_world


@cache
def all_words() -> tuple[str, ...]:
    """Every noun, name and adjective of the corpus, in a fixed order."""
    world, words = shipped_world(), shipped_words()
    lists = [list(world.things), list(world.kinds), world.colours, world.sizes, world.places, words["things"], words["spots"]]
    lists += [words["names"]["train"], words["names"]["held_out"], words["nouns"]["train"], words["nouns"]["held_out"], words["linked"]]
    lists += [[word for pair in world.synonyms + world.antonyms for word in pair], words["opinion"]["good"], words["opinion"]["bad"]]
    lists += [words["opinion"]["things"], words["opinion"]["held_out_things"], words["items"], words["owners"], words["feelings"]]
    return tuple(dict.fromkeys(word for each in lists for word in each))


def repeated(_world: World, rng: Rng, _held_out: bool) -> Item:
    """A row of random words, then the same row again. Length and offset vary, so that only looking back helps."""
    length = rng.randint(3, 24)
    row = [rng.choice(all_words()) for _ in range(length)]
    before = [rng.choice(all_words()) for _ in range(rng.choice((0, 0, 1, 2, 3, 5, 8)))]
    again = row[: rng.randint(2, length)] if rng.random() < 0.3 else row
    copies = 2 if length < 8 and rng.random() < 0.3 else 1
    return Item(family="repeated", prompt=" ".join(before + row), target="".join(f" {word}" for word in again * copies))


def arithmetic(_world: World, rng: Rng, _held_out: bool) -> Item:
    """A small sum or difference with its result."""
    one, other = rng.randint(0, 12), rng.randint(0, 12)
    if rng.random() < 0.5:
        prompt, result = f"{one} + {other} =", one + other
    else:
        prompt, result = f"{max(one, other)} - {min(one, other)} =", abs(one - other)
    wrong = rng.choice([n for n in range(max(0, result - 3), result + 4) if n != result])
    return Item(family="arithmetic", prompt=prompt, target=f" {result}", distractor=f" {wrong}", tail=".", content=prompt)


QUESTIONS_TRAINED = (
    ("The {owner} has {n} {items}.", "How many {items} does the {owner} have?"),
    ("There are {n} {items} in the {spot}.", "How many {items} are in the {spot}?"),
    ("{name} holds {n} {items}.", "How many {items} does {name} hold?"),
)
QUESTIONS_HELD_OUT = (
    ("In the {spot} there are {n} {items}.", "How many {items} are there?"),
    ("{name} found {n} {items}.", "How many {items} did {name} find?"),
)


def context_number(world: World, rng: Rng, held_out: bool) -> Item:
    """Two or three sentences with numbers in them, and a question for one of the numbers."""
    forms = QUESTIONS_HELD_OUT if held_out else QUESTIONS_TRAINED
    words = shipped_words()
    items = rng.sample(words["items"], 3)
    told: list[tuple[str, str, int]] = []
    for number, item in zip(rng.sample(range(2, 20), 3), items[: rng.choice((2, 3))], strict=False):
        fact, question = rng.choice(forms)
        slots = {"owner": rng.choice(words["owners"]), "spot": rng.choice(words["spots"]), "name": _name(rng, held_out)}
        slots |= {"n": str(number), "items": world.plural(item)}
        told.append((fact.format(**slots), question.format(**slots), number))
    chosen, other = rng.sample(told, 2)
    prompt = " ".join(fact for fact, _, _ in told) + f" Question: {chosen[1]} Answer:"
    return Item(family="context_qa", prompt=prompt, target=f" {chosen[2]}", distractor=f" {other[2]}", content=prompt)


def context_letter(world: World, rng: Rng, held_out: bool) -> Item:
    """A context, a question and lettered choices; the answer is the letter of the right choice."""
    words = shipped_words()
    one, other = rng.sample([_name(rng, held_out) for _ in range(8)], 2)
    if one == other:
        return context_letter(world, rng, held_out)
    mine, yours = rng.sample(words["things"], 2)
    told = [f"{one} has the {mine}.", f"{other} has the {yours}."]
    rng.shuffle(told)
    right, wrong = (mine, yours)
    letters = ("A", "B") if rng.random() < 0.5 else ("B", "A")
    choices = sorted([(letters[0], right), (letters[1], wrong)])
    shown = " ".join(f"{letter}) {word}" for letter, word in choices)
    prompt = f"{' '.join(told)} Question: What does {one} have? {shown} Answer:"
    return Item(family="context_qa", prompt=prompt, target=f" {letters[0]}", distractor=f" {letters[1]}", content=prompt)


def context_word(_world: World, rng: Rng, held_out: bool) -> Item:
    """Who has what, and a question for the thing or the person."""
    words = shipped_words()
    names = list(dict.fromkeys(_name(rng, held_out) for _ in range(6)))[:3]
    things = rng.sample(words["things"], len(names))
    told = [f"{name} has the {thing}." for name, thing in zip(names, things, strict=True)]
    at, wrong = rng.sample(range(len(names)), 2)
    if rng.random() < 0.5:
        question, answers = f"What does {names[at]} have? The", things
    else:
        question, answers = f"Who has the {things[at]}?", names
    prompt = f"{' '.join(told)} {question}"
    return Item(family="context_word", prompt=prompt, target=f" {answers[at]}", distractor=f" {answers[wrong]}", tail=".", content=prompt)


def _name(rng: Rng, held_out: bool) -> str:
    names: dict[str, list[str]] = shipped_words()["names"]
    return rng.choice(names["held_out" if held_out else "train"])
