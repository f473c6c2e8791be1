import subprocess
import sys
from itertools import islice

import pytest

from engine.text.corpus import MIXTURE, corpus_sha256, documents, items
from engine.text.corpus_facts import HELD_OUT, is_aside, worded
from engine.text.corpus_language import IOI_HELD_OUT
from engine.text.world import Fact, World, kept_aside, shipped_words, shipped_world, with_article

CORPUS_SHA256 = "d047203ea38dc8e9ffccb1ecd42ebeb2e8b5154286c9370443fc742d0017b6f2"
"""The corpus that the shipped weights were trained on. It changes only together with new weights."""


def test_the_corpus_is_the_one_that_the_shipped_model_was_trained_on():
    assert corpus_sha256() == CORPUS_SHA256


def test_the_same_seed_gives_the_same_documents_in_another_process():
    code = "from engine.text.corpus import corpus_sha256; print(corpus_sha256('7', 300))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == corpus_sha256("7", 300) != corpus_sha256("8", 300)


def test_generating_needs_no_torch():
    code = "import sys; from engine.text import corpus, datasets, relations; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def training() -> list:
    return list(documents("disjoint", 30_000))


def test_every_family_occurs_in_its_share(training):
    assert sum(share for _, share in MIXTURE.values()) == pytest.approx(1)
    assert {item.family for item in training} >= {"facts", "true_false", "indirect_object", "agreement", "repeated", "story"}


def test_names_and_nouns_kept_aside_do_not_occur_in_their_family(training):
    words = shipped_words()
    names, nouns = set(words["names"]["held_out"]), set(words["nouns"]["held_out"])
    world = shipped_world()
    nouns |= {world.plural(noun) for noun in nouns}
    for item in training:
        said = set(item.text.replace(".", " ").replace(",", " ").split())
        if item.family in ("indirect_object", "sentiment", "context_qa", "context_word", "story"):
            assert not said & names, item.text
        if item.family == "agreement":
            assert not said & nouns, item.text


def test_but_they_occur_elsewhere_so_that_the_model_knows_them(training):
    said = {word for item in training for word in item.text.replace(".", " ").split()}
    assert set(shipped_words()["names"]["held_out"]) <= said
    assert set(shipped_words()["nouns"]["held_out"]) <= said


def test_facts_kept_aside_are_never_asked_and_conclusions_never_told(training):
    world = shipped_world()
    asked = {item.content for item in training if item.family == "true_false"}
    told = {sentence.strip() + "." for item in training if item.family == "facts" for sentence in item.text.split(".") if sentence}
    for subject in islice(world.things, 0, None, 4):
        for relation, templates in HELD_OUT.items():
            for value in (*world.true_values(subject, relation), *world.false_values(subject, relation)):
                fact = Fact(subject=subject, relation=relation, value=value)
                sentences = {worded(world, fact, template) for template in templates}
                assert not sentences & (asked | told)
                plain = worded(world, fact, "{a} is {av}.")
                assert not (relation in ("kind", "above") and is_aside(fact) and plain in asked)
                assert not (relation == "above" and is_aside(fact) and plain in told)


def test_held_out_items_ask_only_what_training_does_not(training):
    trained = {item.text for item in training}
    for family in ("true_false", "indirect_object", "agreement", "sentiment", "context_number", "context_letter", "context_word"):
        for item in items(family, "test", 100):
            assert item.text not in trained
            assert item.target != item.distractor


def test_the_two_people_come_in_either_order():
    for template in IOI_HELD_OUT:
        assert template.index("{x}") < template.index("{y}") < template.index("{s}")
    takers = [
        item.prompt.index(item.target.strip()) < item.prompt.index(item.distractor.strip()) for item in items("indirect_object", "x", 300)
    ]
    assert 0.4 < sum(takers) / 300 < 0.6


def test_items_are_different_and_too_many_are_refused():
    assert len({item.prompt for item in items("agreement", "x", 200)}) == 200
    with pytest.raises(ValueError, match="family 'arithmetic' has only about"):
        items("arithmetic", "x", 400)


def test_every_thing_has_one_place_in_a_closed_world():
    world = shipped_world()
    assert len(world.things) >= 120
    for thing in world.things.values():
        assert thing.colour in world.colours
        assert thing.size in world.sizes
        assert thing.place in world.places
        assert world.kinds[thing.kind][0] in world.above


def test_true_and_false_values_share_nothing():
    world = shipped_world()
    for subject in islice(world.things, 0, None, 7):
        for relation in HELD_OUT:
            true, false = world.true_values(subject, relation), world.false_values(subject, relation)
            assert true
            assert false
            assert not set(true) & set(false)
            assert all(world.is_true(Fact(subject=subject, relation=relation, value=value)) for value in true)
    assert world.true_values("robin", "above") == ("animal", "organism")


def test_articles_plurals_and_what_is_kept_aside():
    world: World = shipped_world()
    assert [with_article(word) for word in ("robin", "owl", "eel")] == ["a robin", "an owl", "an eel"]
    assert [world.plural(word) for word in ("robin", "mouse", "box")] == ["robins", "mice", "boxes"]
    share = sum(kept_aside(str(n), "x", share=0.2) for n in range(2000)) / 2000
    assert 0.16 < share < 0.24
