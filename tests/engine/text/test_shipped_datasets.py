"""The shipped rows say what the world says, are what the builder builds, and were held out from training."""

import itertools
from collections import Counter
from pathlib import Path

import pytest

from engine.spec import read_spec, shipped_specs
from engine.spec.base import DatasetRef
from engine.text.corpus import documents
from engine.text.corpus_facts import ASKED, HELD_OUT, QUESTION, is_aside, worded
from engine.text.datasets import Row, load_dataset
from engine.text.world import Fact, shipped_world
from scripts.build_datasets import BUILDERS, FOLDER, jsonl
from scripts.micro_overlap import LONGEST, held_out_grams, overlaps


def rows(name: str) -> tuple[Row, ...]:
    return load_dataset(DatasetRef(name=name)).rows


@pytest.fixture(scope="module")
def facts_by_sentence() -> dict[str, Fact]:
    """Every sentence that the wordings of questions can make, with the fact that it states."""
    world = shipped_world()
    found: dict[str, Fact] = {}
    for subject, relation in itertools.product(world.things, ASKED):
        for value in (*world.true_values(subject, relation), *world.false_values(subject, relation)):
            fact = Fact(subject=subject, relation=relation, value=value)
            for template in ASKED[relation] + HELD_OUT[relation]:
                sentence = worded(world, fact, template)
                assert found.setdefault(sentence, fact) in (fact,) or world.is_true(found[sentence]) == world.is_true(fact)
    return found


@pytest.mark.parametrize("name", BUILDERS)
def test_the_files_are_what_the_builder_builds(name):
    assert (Path(__file__).parents[3] / FOLDER / f"{name}.jsonl").read_text(encoding="utf-8") == jsonl(name)


def test_every_statement_about_the_micro_world_has_the_truth_that_the_world_gives_it(facts_by_sentence):
    micro = [row for row in rows("epistemology_true_false") if row.id.startswith("micro-")]
    assert len(micro) == 480
    for row in micro:
        assert row.prompt is not None
        fact = facts_by_sentence[row.prompt.removesuffix(QUESTION)]
        expected = str(shipped_world().is_true(fact)).lower()
        wrong = "false" if expected == "true" else "true"
        assert (row.label, row.target, row.distractor) == (expected, f" {expected}", f" {wrong}"), row.id


def test_pairs_and_conclusions_are_of_facts_that_training_never_asks(facts_by_sentence):
    for row in rows("epistemology_true_false"):
        if row.id.startswith(("micro-pair", "micro-transitive")):
            assert is_aside(facts_by_sentence[str(row.prompt).removesuffix(QUESTION)]), row.id


def test_true_and_false_are_in_balance_in_every_category_and_every_shard():
    labels = [(row.id.split("-")[0:2], row.label) for row in rows("epistemology_true_false")]
    counts = Counter(("real" if kind[0] == "real" else kind[1], label) for kind, label in labels)
    assert counts == {(kind, label): 80 for kind in ("pair", "wording", "transitive") for label in ("true", "false")} | {
        ("real", "true"): 50,
        ("real", "false"): 50,
    }
    for start in range(0, 480, 80):
        assert Counter(label for _, label in labels[start : start + 80]) == {"true": 40, "false": 40}


def test_no_eight_words_in_a_row_of_a_held_out_prompt_occur_in_training():
    held_out = held_out_grams()
    assert len(held_out[LONGEST]) > 1000
    assert overlaps((item.text for item in documents("0:0", 20_000)), held_out) == set()


def test_what_does_occur_in_training_is_found():
    (item,) = documents("0:0", 1)
    words = item.text.split()
    n = min(LONGEST, len(words))
    assert overlaps([item.text], {n: {tuple(words[:n])}}) == {tuple(words[:n])}


def test_repeated_rows_repeat():
    for row in (*rows("planted_induction"), *rows("repeated_words")):
        words = f"{row.prompt}{row.target}".split()
        again = [words.index(word) for word in words]
        second = len(str(row.prompt).split()) - 1
        assert len(set(words[:second])) == second
        assert again[second:] == list(range(again[second], second))


def test_indirect_objects_and_agreement_cannot_be_solved_by_place_alone():
    first_named = [
        str(row.prompt).find(str(row.target).strip()) < str(row.prompt).find(str(row.distractor).strip())
        for row in rows("indirect_objects")
    ]
    assert 0.4 < sum(first_named) / len(first_named) < 0.6
    assert Counter(row.label for row in rows("agreement")) == {"singular": 120, "plural": 120}


@pytest.mark.parametrize("name", shipped_specs())
def test_every_shipped_spec_reads_and_its_rows_exist(name):
    named = read_spec(name)
    assert named.name
    assert len(named.description) > 80
    data = load_dataset(named.spec.dataset)
    needed = {"target_loss": ("target",), "logit_diff": ("target", "distractor"), "loss": (), None: ()}[getattr(named.spec, "metric", None)]
    assert all(getattr(row, field) for row in data.rows for field in needed)
    if getattr(named.spec, "reference", None) is not None:
        assert not {row.id for row in load_dataset(named.spec.reference).rows} & {row.id for row in data.rows}
