"""Families about what is true in the closed world: plain facts, true or false, yes or no, and questions for a word."""

from engine.text.items import Item, Rng, sentence
from engine.text.world import Fact, World, kept_aside, with_article

PLAIN = {
    "kind": ("{a} is {av}.", "every {n} is {av}."),
    "above": ("{a} is {av}.", "every {n} is {av}."),
    "colour": ("{a} is {v}.", "the colour of {a} is {v}."),
    "size": ("{a} is {v}.", "the size of {a} is {v}."),
    "place": ("{a} is found in the {v}.", "you can find {a} in the {v}."),
    "part": ("{a} has {av}.", "you can see a {v} on {a}."),
    "act": ("{a} can {v}.", "you can see {a} {v}."),
}
"""Wordings in which every fact is told; the only ones for facts that are kept out of questions."""

ASKED = {
    "kind": ("{a} is a kind of {v}.", "the {n} is {av}.", "we call {a} {av}.", "all {ns} are {vs}."),
    "above": ("{a} is a kind of {v}.", "the {n} is {av}.", "we call {a} {av}.", "all {ns} are {vs}."),
    "colour": ("the {n} is {v}.", "every {n} is {v}.", "{a} has the colour {v}.", "all {ns} are {v}."),
    "size": ("the {n} is {v}.", "every {n} is {v}.", "{a} has the size {v}.", "all {ns} are {v}."),
    "place": ("the {n} is found in the {v}.", "every {n} is found in the {v}.", "look for {a} in the {v}.", "all {ns} live in the {v}."),
    "part": ("the {n} has {av}.", "every {n} has {av}.", "all {ns} have {vs}."),
    "act": ("the {n} can {v}.", "every {n} can {v}.", "all {ns} can {v}."),
}
"""Further wordings, never used for facts that are kept out of questions."""

HELD_OUT = {
    "kind": ("{a} is one kind of {v}.", "any {n} is {av}."),
    "above": ("{a} is one kind of {v}.", "any {n} is {av}."),
    "colour": ("any {n} is {v}.", "the colour of the {n} is {v}."),
    "size": ("any {n} is {v}.", "the size of the {n} is {v}."),
    "place": ("any {n} is found in the {v}.", "you can find the {n} in the {v}."),
    "part": ("any {n} has {av}.", "you can see a {v} on the {n}."),
    "act": ("any {n} can {v}.", "you can see the {n} {v}."),
}
"""Wordings that training never sees for things."""

ASIDE = {"kind": 0.15, "colour": 0.15, "size": 0.15, "place": 0.15, "part": 0.1, "act": 0.1, "above": 0.25}
"""Share of (thing, relation) pairs kept out of questions. For `above` they are kept out altogether and have to be concluded."""

FACT_RELATIONS = ("kind", "kind", "colour", "colour", "size", "place", "part", "act", "above")
QUESTION = " True or false?"


def is_aside(fact: Fact) -> bool:
    """Whether questions about this thing and relation are kept out of training."""
    return kept_aside(fact.subject, fact.relation, share=ASIDE[fact.relation])


def worded(world: World, fact: Fact, template: str) -> str:
    """The fact as an English sentence."""
    n, v = fact.subject, fact.value
    text = template.format(a=with_article(n), n=n, ns=world.plural(n), v=v, av=with_article(v), vs=world.plural(v))
    return sentence(text)


def drawn_fact(world: World, rng: Rng, *, true: bool, relation: str | None = None) -> Fact:
    """A fact of a random thing, true or false as asked."""
    relation = relation or rng.choice(FACT_RELATIONS)
    subject = rng.choice(list(world.things))
    values = (world.true_values if true else world.false_values)(subject, relation)
    return Fact(subject=subject, relation=relation, value=rng.choice(values))


def plain_fact(world: World, rng: Rng, _held_out: bool) -> Item:
    """A true sentence, or three about one thing."""
    if rng.random() < 0.25:
        return _about_kinds(world, rng)
    fact = drawn_fact(world, rng, true=True)
    while fact.relation == "above" and is_aside(fact):
        fact = drawn_fact(world, rng, true=True)
    told = [worded(world, each, rng.choice(_training_wordings(each))) for each in _companions(world, rng, fact)]
    return Item(family="facts", prompt=" ".join(told))


def _companions(world: World, rng: Rng, fact: Fact) -> list[Fact]:
    """The fact, and sometimes its thing's kind and another of its facts."""
    if rng.random() < 0.6:
        return [fact]
    others = [relation for relation in ("kind", "colour", "size", "place") if relation != fact.relation]
    chosen = rng.sample(others, 2)
    return [fact, *(Fact(subject=fact.subject, relation=each, value=world.true_values(fact.subject, each)[0]) for each in chosen)]


def _training_wordings(fact: Fact) -> tuple[str, ...]:
    return PLAIN[fact.relation] if is_aside(fact) else PLAIN[fact.relation] + ASKED[fact.relation]


def _about_kinds(world: World, rng: Rng) -> Item:
    """What holds between kinds, which conclusions about things need: `every bird is an animal`."""
    kind = rng.choice(list(world.kinds))
    higher, parts, act = world.kinds[kind]
    told = (
        f"every {kind} is {with_article(higher)}.",
        f"{with_article(kind)} is a kind of {higher}.",
        f"any {kind} is one kind of {higher}.",
        f"every {higher} is {with_article(world.above[higher])}.",
        f"{with_article(kind)} is {with_article(world.above[higher])}.",
        f"any {kind} has {with_article(rng.choice(parts))}.",
        f"every {kind} can {act}.",
    )
    return Item(family="facts", prompt=sentence(rng.choice(told)))


def true_false(world: World, rng: Rng, held_out: bool) -> Item:
    """A statement, and whether it is true."""
    true = rng.random() < 0.5
    while True:
        fact = drawn_fact(world, rng, true=true)
        wordings = _held_out_wordings(rng, fact) if held_out else _open_wordings(fact)
        if wordings:
            return asked(worded(world, fact, rng.choice(wordings)), true=true)


def _open_wordings(fact: Fact) -> tuple[str, ...]:
    return () if is_aside(fact) else PLAIN[fact.relation] + ASKED[fact.relation]


def _held_out_wordings(rng: Rng, fact: Fact) -> tuple[str, ...]:
    """Sentences that training never has: facts kept aside in wordings used for others, or any fact in a new wording."""
    if is_aside(fact) and rng.random() < 0.7:
        return ASKED[fact.relation]
    return HELD_OUT[fact.relation]


def asked(statement: str, *, true: bool) -> Item:
    """The statement with the question behind it, and the answer as target."""
    right, wrong = (" true", " false") if true else (" false", " true")
    return Item(family="true_false", prompt=statement + QUESTION, target=right, distractor=wrong, label=right.strip(), content=statement)


def word_question(world: World, rng: Rng, held_out: bool) -> Item:
    """A question with one word as the answer: kind, colour, size or place of a thing."""
    relation = rng.choice(("kind", "kind", "colour", "size", "place"))
    fact = drawn_fact(world, rng, true=True, relation=relation)
    while is_aside(fact) != held_out:
        fact = drawn_fact(world, rng, true=True, relation=relation)
    name, wrong = with_article(fact.subject), rng.choice(world.false_values(fact.subject, relation))
    prompt, lead = {
        "kind": (f"What is {name}? It is", "a"),
        "colour": (f"What colour is {name}? It is", ""),
        "size": (f"What size is {name}? It is", ""),
        "place": (f"Where do you find {name}? In the", ""),
    }[relation]
    if lead:
        prompt = f"What kind of thing is {name}? Its kind is"
    return Item(family="word_question", prompt=prompt, target=f" {fact.value}", distractor=f" {wrong}", tail=".", content=prompt)


def word_pair(world: World, rng: Rng, _held_out: bool) -> Item:
    """Words that mean the same, and words that mean the opposite."""
    same = rng.random() < 0.5
    pairs = world.synonyms if same else world.antonyms
    one, other = rng.choice(pairs)
    if rng.random() < 0.5:
        one, other = other, one
    wrong = rng.choice(rng.choice(world.antonyms + world.synonyms))
    if rng.random() < 0.4:
        return _judged_pair(rng, one, other, pairs, same=same)
    prompt = f"Another word for {one} is" if same else f"The opposite of {one} is"
    return Item(family="word_pair", prompt=prompt, target=f" {other}", distractor=f" {wrong}", tail=".", content=prompt)


def _judged_pair(rng: Rng, one: str, other: str, pairs: list[tuple[str, ...]], *, same: bool) -> Item:
    true = rng.random() < 0.5
    if not true:
        known = {frozenset(pair) for pair in pairs}
        other = rng.choice([word for pair in pairs for word in pair if word != one and frozenset((one, word)) not in known])
    return asked(f"The word {one} means {'the same as' if same else 'the opposite of'} {other}.", true=true)
