"""Training of philab-micro, in small: the same steps give the same weights, and an interrupted training goes on as if it had not been."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.text.corpus_patterns import all_words
from engine.text.world import shipped_world
from scripts.train_micro import Plan, batch_of, export, new_model, train, trained_tokenizer

SMALL = Plan(steps=10, batch=4, length=48, hidden=32, layers=2, heads=2, warm_up=3)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    work = tmp_path_factory.mktemp("straight")
    return work, train(SMALL, work, save_every=100)


def weights_equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_an_interrupted_training_gives_the_same_bits_as_a_straight_one(trained, tmp_path):
    _, straight = trained
    train(SMALL, tmp_path, save_every=4, until=4)
    resumed = train(SMALL, tmp_path, save_every=4)
    assert weights_equal(straight, resumed)
    assert not weights_equal(straight, new_model(SMALL))


def test_the_loss_falls(trained):
    work, _ = trained
    losses = torch.load(work / "checkpoint.pt", weights_only=True)["losses"]
    assert len(losses) == SMALL.steps
    assert losses[-1] < losses[0] - 0.5


def test_every_word_of_the_corpus_is_one_token():
    tokenizer = trained_tokenizer(SMALL)
    world = shipped_world()
    words = {*all_words(), *(world.plural(name) for name in world.things), "true", "false", "12"}
    assert [word for word in words if len(tokenizer(f" {word}")["input_ids"]) > 1] == []
    text = "A robin isn't a zyzzyva: 3 + 4 = 7."
    assert tokenizer.decode(tokenizer(text)["input_ids"]).strip() == text


def test_batches_depend_on_seed_and_step_only(trained):
    work, _ = trained
    tokenizer = AutoTokenizer.from_pretrained(work).backend_tokenizer
    assert torch.equal(batch_of(SMALL, tokenizer, 3).ids, batch_of(SMALL, tokenizer, 3).ids)
    assert not torch.equal(batch_of(SMALL, tokenizer, 3).ids, batch_of(SMALL, tokenizer, 4).ids)
    assert batch_of(SMALL, tokenizer, 0).ids.shape == (SMALL.batch, SMALL.length + 1)


def test_random_words_hardly_count_and_answers_count_most(trained):
    work, _ = trained
    tokenizer = AutoTokenizer.from_pretrained(work).backend_tokenizer
    weights = {round(weight, 3) for weight in batch_of(SMALL, tokenizer, 0).weights.flatten().tolist()}
    assert weights == {0.1, 0.4, 0.5, 1.0, 3.0}


def test_the_export_is_a_folder_that_transformers_loads(trained, tmp_path):
    work, model = trained
    export(work, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert loaded.config.model_type == "phi"
    torch.testing.assert_close(loaded.lm_head.weight, model.lm_head.weight.half().float())
    facts = json.loads((tmp_path / "training.json").read_text())
    assert facts["steps_done"] == SMALL.steps
    assert facts["tokens_seen"] == 10 * 4 * 48
    assert facts["stages"] == [[0, 10]]


def test_a_change_of_the_planned_steps_on_the_way_is_kept(tmp_path):
    train(replace(SMALL, steps=20), tmp_path, save_every=100, until=2)
    train(replace(SMALL, steps=4), tmp_path, save_every=100)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["stages"] == [[0, 20], [2, 4]]
    assert state["step"] == 4
