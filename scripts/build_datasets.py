"""Write the shipped datasets: `python -m scripts.build_datasets`. Everything in them is held out from the training of philab-micro.

The files are in the repository; a test builds them again and compares.
Run this only after a deliberate change, together with a new training.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from random import Random

import yaml

from engine.models.planted import WORDS
from engine.text.corpus import items
from engine.text.corpus_facts import ASKED, HELD_OUT, QUESTION, is_aside, worded
from engine.text.corpus_patterns import all_words
from engine.text.items import Item
from engine.text.world import Fact, World, shipped_world, with_article

Record = dict[str, str]
LICENSE = "CC0-1.0"
FOLDER = Path("engine/resources/datasets")
RELATIONS = ("kind", "colour", "size", "place", "part", "act")


def epistemology_true_false() -> Iterator[Record]:
    """480 statements of the micro world, true and false by turns and three categories by turns; then 100 about the real world."""
    world, rng = shipped_world(), Random("epistemology_true_false")
    made: set[str] = set()
    for number in range(480):
        category = ("pair", "wording", "transitive")[number // 2 % 3]
        true = number % 2 == 0
        relation = "above" if category == "transitive" else RELATIONS[number // 6 % len(RELATIONS)]
        statement = _new_statement(world, rng, category, relation, true, made)
        yield _judged(f"micro-{category}-{relation}-{number:03d}", statement, true=true, category=f"micro_{category}")
    for number, (right, wrong) in enumerate(_real_world()):
        yield _judged(f"real-{2 * number:03d}", right, true=True, category="real_world")
        yield _judged(f"real-{2 * number + 1:03d}", wrong, true=False, category="real_world")


def _new_statement(world: World, rng: Random, category: str, relation: str, true: bool, made: set[str]) -> str:
    while True:
        subject = rng.choice(list(world.things))
        values = (world.true_values if true else world.false_values)(subject, relation)
        fact = Fact(subject=subject, relation=relation, value=rng.choice(values))
        if category != "wording" and not is_aside(fact):
            continue
        statement = worded(world, fact, rng.choice((HELD_OUT if category == "wording" else ASKED)[relation]))
        if statement not in made:
            made.add(statement)
            return statement


def _judged(name: str, statement: str, *, true: bool, category: str) -> Record:
    right, wrong = (" true", " false") if true else (" false", " true")
    return {
        "id": name,
        "prompt": statement + QUESTION,
        "target": right,
        "distractor": wrong,
        "label": str(true).lower(),
        "category": category,
    }


def _real_world() -> list[tuple[str, str]]:
    text = (files("engine") / "resources" / "corpus" / "real_world.yaml").read_text(encoding="utf-8")
    return [(right, wrong) for right, wrong in yaml.safe_load(text)]


def planted_induction() -> Iterator[Record]:
    """Rows of words, the same row again. The prompt ends with the first word of the second copy, from where looking back tells all."""
    yield from _repeats("planted_induction", WORDS, 240, longest=16)


def repeated_words() -> Iterator[Record]:
    """The same with words of the micro world."""
    yield from _repeats("repeated_words", all_words(), 240, longest=20)


def _repeats(name: str, words: tuple[str, ...], count: int, *, longest: int) -> Iterator[Record]:
    rng = Random(name)
    for number in range(count):
        length, before = rng.randint(6, longest), rng.randint(0, 6)
        drawn = rng.sample(words, length + before)
        row = drawn[before:]
        wrong = rng.choice(row[2:])
        yield {
            "id": f"row-{number:03d}",
            "prompt": " ".join([*drawn, row[0]]),
            "target": "".join(f" {word}" for word in row[1:]),
            "distractor": f" {wrong}",
        }


def indirect_objects() -> Iterator[Record]:
    """Who is given something? Names and wordings that training never has for this."""
    yield from (_asking(item, f"ioi-{number:03d}") for number, item in enumerate(items("indirect_object", "dataset", 240)))


def agreement() -> Iterator[Record]:
    """The verb that goes with a subject that training never has in such sentences; singular and plural by turns."""
    found = items("agreement", "dataset", 400)
    halves = [[item for item in found if (item.target in PLURAL_VERBS) == many][:120] for many in (False, True)]
    for number, item in enumerate(item for pair in zip(*halves, strict=True) for item in pair):
        yield {**_asking(item, f"agreement-{number:03d}"), "label": "plural" if number % 2 else "singular"}


PLURAL_VERBS = {" are", " were", " have", " run", " sing", " wait", " sleep", " work", " play", " fall", " look"}


def micro_stories() -> Iterator[Record]:
    """Stories in the micro world about people whom the stories of training do not know."""
    yield from ({"id": f"story-{number:03d}", "text": item.text} for number, item in enumerate(items("story", "dataset", 240)))


def semantic_relations() -> Iterator[Record]:
    """A word of the micro world and a relation; which word fits? Four relations by turns."""
    world, rng = shipped_world(), Random("semantic_relations")
    made: set[tuple[str, str]] = set()
    while len(made) < 240:
        relation = ("hypernym", "meronym", "synonym", "antonym")[len(made) % 4]
        prompt, target, wrong = _related(world, rng, relation)
        if target != wrong and (prompt, wrong) not in made:
            made.add((prompt, wrong))
            yield {
                "id": f"{relation}-{len(made) - 1:03d}",
                "prompt": prompt,
                "target": f" {target}",
                "distractor": f" {wrong}",
                "label": relation,
            }


def _related(world: World, rng: Random, relation: str) -> tuple[str, str, str]:
    """Prompt, right word and wrong word."""
    if relation in ("hypernym", "meronym"):
        subject = rng.choice(list(world.things))
        sort = "kind" if relation == "hypernym" else "part"
        prompt = f"A{with_article(subject)[1:]} is a kind of" if sort == "kind" else f"A{with_article(subject)[1:]} has a"
        fits = [part for part in world.true_values(subject, sort) if sort == "kind" or part[0] not in "aeiou"]
        wrong = [part for part in world.false_values(subject, sort) if sort == "kind" or part[0] not in "aeiou"]
        return prompt, rng.choice(fits), rng.choice(wrong)
    pairs = world.synonyms if relation == "synonym" else world.antonyms
    one, other = rng.sample(rng.choice(pairs), 2)
    related = {word for pair in world.synonyms + world.antonyms if one in pair or other in pair for word in pair}
    wrong = [word for pair in pairs for word in pair if word not in related]
    return (f"Another word for {one} is" if relation == "synonym" else f"The opposite of {one} is"), other, rng.choice(wrong)


def _asking(item: Item, name: str) -> Record:
    return {"id": name, "prompt": item.prompt, "target": item.target, "distractor": item.distractor}


BUILDERS: dict[str, Callable[[], Iterator[Record]]] = {
    "epistemology_true_false": epistemology_true_false,
    "planted_induction": planted_induction,
    "repeated_words": repeated_words,
    "indirect_objects": indirect_objects,
    "agreement": agreement,
    "micro_stories": micro_stories,
    "semantic_relations": semantic_relations,
}


def jsonl(name: str) -> str:
    """The text of a shipped dataset's file."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in BUILDERS[name]())


def main(arguments: list[str] | None = None) -> int:
    """Write all files; 0 when it went well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    folder: Path = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in BUILDERS:
        text = jsonl(name)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{name}: {len(text.splitlines())} rows")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
