"""The shipped philab-micro: its files, what it can do, and that single heads matter. Judged by plain transformers and edited weights."""

import json
from pathlib import Path

import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer, PhiForCausalLM, PreTrainedTokenizerBase

from engine.models.reference import micro_folder
from engine.spec.base import DatasetRef, Rows
from engine.text.corpus import corpus_sha256
from engine.text.datasets import Row, load_dataset
from scripts.micro_abilities import ABILITIES, continued, counted_bigrams, measure, repeat_losses, wilson
from scripts.micro_card import card
from scripts.micro_overlap import held_out_grams

FOLDER = micro_folder(Path())


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> PhiForCausalLM:
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def facts() -> dict:
    return json.loads((FOLDER / "abilities.json").read_text())


def test_the_files_are_small_and_complete(model):
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 12_000_000
    assert 2_000_000 < model.num_parameters() < 4_000_000
    assert model.config.model_type == "phi"


def test_the_card_holds_the_measured_numbers_and_nothing_else(model, facts):
    training, overlap = (json.loads((FOLDER / name).read_text()) for name in ("training.json", "overlap.json"))
    size = (FOLDER / "model.safetensors").stat().st_size
    assert (FOLDER / "README.md").read_text() == card(training, facts, overlap, size, model.num_parameters())


def test_nothing_held_out_was_trained_on():
    facts = json.loads((FOLDER / "overlap.json").read_text())
    assert facts["overlaps"] == []
    assert facts["held_out_runs"] == sum(map(len, held_out_grams().values()))


def test_it_was_trained_on_the_corpus_that_ships():
    assert json.loads((FOLDER / "training.json").read_text())["corpus_sha256"] == corpus_sha256()


@pytest.mark.parametrize("ability", ["true or false", "indirect object", "subject-verb agreement"])
def test_abilities_are_as_the_card_says(model, tokenizer, facts, ability):
    stated = next(one for one in facts["abilities"] if one["ability"] == ability)
    found = measure(model, tokenizer, counted_bigrams(2000), ability, 120)
    assert abs(found.choice - stated["choice"]) < 0.12
    assert (stated["choice_low"], stated["choice_high"]) == pytest.approx(wilson(stated["choice"], stated["n"]))
    assert {one["ability"] for one in facts["abilities"]} == set(ABILITIES)


def test_a_row_of_random_words_is_easier_the_second_time(model, tokenizer, facts):
    first, second = repeat_losses(model, tokenizer, rows=40)
    assert first - second > 2
    assert facts["repeats"]["first_copy_loss"] - facts["repeats"]["second_copy_loss"] > 2


def test_what_it_writes_is_a_sentence_of_its_world(model, tokenizer, facts):
    story = continued(model, tokenizer, "One day Alice went to the")
    assert story == facts["samples"]["One day Alice went to the"]
    assert story.endswith(".")
    assert "Alice" in story.split("the", 1)[1]


@torch.no_grad()
def target_losses(model: PhiForCausalLM, tokenizer: PreTrainedTokenizerBase, rows: tuple[Row, ...]) -> torch.Tensor:
    losses = []
    for row in rows:
        before = len(tokenizer(str(row.prompt))["input_ids"])
        ids = torch.tensor([tokenizer(f"{row.prompt}{row.target}")["input_ids"]])
        losses.append(torch.nn.functional.cross_entropy(model(ids).logits[0, before - 1 : -1], ids[0, before:]))
    return torch.stack(losses)


def head_effects(model: PhiForCausalLM, tokenizer: PreTrainedTokenizerBase, rows: tuple[Row, ...], layer: int, head: int) -> torch.Tensor:
    """Rise of the loss when the columns of one head's output weights are zero, per row."""
    weight = model.model.layers[layer].self_attn.dense.weight
    size = model.config.hidden_size // model.config.num_attention_heads
    kept = weight.detach().clone()
    clean = target_losses(model, tokenizer, rows)
    with torch.no_grad():
        weight[:, head * size : (head + 1) * size] = 0
    edited = target_losses(model, tokenizer, rows)
    with torch.no_grad():
        weight.copy_(kept)
    return edited - clean


@pytest.mark.parametrize("start", [0, 40, 80])
def test_one_head_matters_in_every_shard(model, tokenizer, start):
    rows = load_dataset(DatasetRef(name="repeated_words", rows=Rows(start=start, stop=start + 40))).rows
    effects = head_effects(model, tokenizer, rows, *STRONGEST_HEAD).numpy()
    half = stats.t.ppf(0.975, len(effects) - 1) * effects.std(ddof=1) / len(effects) ** 0.5
    assert effects.mean() - half > 0.1


STRONGEST_HEAD = (1, 3)
"""Layer and head whose loss costs most on repeated words."""
