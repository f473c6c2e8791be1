"""The planted model, judged by plain transformers and by editing weights: nothing of the engine's own hooks is used here."""

import hashlib
import multiprocessing
import stat
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerBase

from engine.errors import ModelError, StoreError
from engine.models.planted import D_HEAD, INDUCTION_HEAD, N_HEADS, N_LAYERS, PREVIOUS_TOKEN_HEAD, planted_weights
from engine.models.reference import SHIPPED, planted_folder, with_weights
from engine.spec.base import DatasetRef, Rows
from engine.text.datasets import Row, load_dataset

WEIGHTS_SHA256 = "c27ccdd8e522ab839457e5a14b8b2ebad7962a6e3fde87b378d762b6e2bd3d48"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return planted_folder(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def rows() -> tuple[Row, ...]:
    return load_dataset(DatasetRef(name="planted_induction", rows=Rows(start=0, stop=48))).rows


@pytest.fixture
def model(folder) -> GPT2LMHeadModel:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def tokenizer(folder) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def target_losses(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, rows: tuple[Row, ...]) -> torch.Tensor:
    """Mean loss in nats over the target's tokens, per row."""
    losses = []
    for row in rows:
        before = len(tokenizer(str(row.prompt))["input_ids"])
        ids = torch.tensor([tokenizer(f"{row.prompt}{row.target}")["input_ids"]])
        losses.append(torch.nn.functional.cross_entropy(model(ids).logits[0, before - 1 : -1], ids[0, before:]))
    return torch.stack(losses)


def without_head(model: GPT2LMHeadModel, layer: int, head: int) -> GPT2LMHeadModel:
    """The model with the rows of one head's output weights set to zero, in place."""
    with torch.no_grad():
        model.transformer.h[layer].attn.c_proj.weight[head * D_HEAD : (head + 1) * D_HEAD] = 0
    return model


def test_the_second_copy_is_foreseen_without_fail(model, tokenizer, rows):
    assert target_losses(model, tokenizer, rows).max() < 5e-4


def test_without_the_previous_token_head_it_is_not(model, tokenizer, rows):
    losses = target_losses(without_head(model, *PREVIOUS_TOKEN_HEAD), tokenizer, rows)
    assert losses.mean() > 20
    assert losses.min() > 1


def test_without_the_induction_head_all_words_are_about_equally_likely(model, tokenizer, rows):
    losses = target_losses(without_head(model, *INDUCTION_HEAD), tokenizer, rows)
    torch.testing.assert_close(losses, torch.full_like(losses, 25).log(), atol=0.3, rtol=0)
    assert losses.mean().item() == pytest.approx(3.22, abs=0.03)


@pytest.mark.parametrize(("layer", "head"), [(layer, head) for layer in range(N_LAYERS) for head in range(N_HEADS)])
def test_no_other_head_matters(model, tokenizer, rows, layer, head):
    if (layer, head) in (PREVIOUS_TOKEN_HEAD, INDUCTION_HEAD):
        return
    before = target_losses(model, tokenizer, rows)
    after = target_losses(without_head(model, layer, head), tokenizer, rows)
    assert (after - before).abs().max() < 0.05


def test_the_two_heads_look_where_they_should(folder, tokenizer, rows):
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ids = torch.tensor([tokenizer(f"{rows[0].prompt}{rows[0].target}")["input_ids"]])
    with torch.no_grad():
        patterns = model(ids, output_attentions=True).attentions
    length = ids.shape[1]
    previous = patterns[PREVIOUS_TOKEN_HEAD[0]][0, PREVIOUS_TOKEN_HEAD[1]]
    assert previous[range(1, length), range(length - 1)].min() > 0.999
    second = [position for position in range(length) if int(ids[0, position]) in ids[0, :position].tolist()]
    after_first = [ids[0, :position].tolist().index(int(ids[0, position])) + 1 for position in second]
    assert patterns[INDUCTION_HEAD[0]][0, INDUCTION_HEAD[1]][second, after_first].min() > 0.999


def test_the_weights_are_the_same_everywhere():
    digest = hashlib.sha256()
    for name, weight in sorted(planted_weights().items()):
        digest.update(name.encode() + weight.contiguous().numpy().tobytes())
    assert digest.hexdigest() == WEIGHTS_SHA256


def test_writing_it_leaves_the_source_of_chance_alone(tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    planted_folder(tmp_path)
    assert torch.equal(torch.rand(2), expected)


def test_words_are_tokens_and_unknown_words_are_the_end(tokenizer):
    ids = tokenizer("ash zip nothing")["input_ids"]
    assert ids == [1, 24, 0]
    assert tokenizer.decode(ids[:2]) == "ash zip"


def test_it_is_written_once_and_again_only_when_it_is_outdated(tmp_path):
    folder = planted_folder(tmp_path)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert (planted_folder(tmp_path) / "model.safetensors").stat().st_mtime_ns == written
    (folder / "VERSION").write_text("0")
    assert (planted_folder(tmp_path) / "model.safetensors").stat().st_mtime_ns != written
    assert [entry.name for entry in folder.parent.iterdir()] == ["planted-induction"]


def test_two_processes_at_once_leave_one_whole_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        folders = pool.map(planted_folder, [tmp_path, tmp_path])
    assert folders[0] == folders[1]
    assert [entry.name for entry in folders[0].parent.iterdir()] == ["planted-induction"]
    assert AutoModelForCausalLM.from_pretrained(folders[0]).num_parameters() > 400_000


def test_a_data_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "models").write_text("a file where a folder should be")
    with pytest.raises(StoreError, match=r"model 'planted-induction' cannot be written to .*Free some space"):
        planted_folder(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="the size of files cannot be limited")
def test_a_full_disk_is_said_in_a_sentence_and_leaves_nothing(tmp_path):
    import resource
    import signal

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(StoreError, match="'planted-induction' cannot be written"):
            planted_folder(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not list((tmp_path / "models").iterdir())


def test_a_missing_micro_model_says_how_to_get_it(tmp_path):
    with pytest.raises(ModelError, match=r"its weights are not there\. .*scripts\.train_micro"):
        with_weights(tmp_path)


def test_shipped_models_have_weights_config_and_tokenizer(tmp_path):
    for name, where in SHIPPED.items():
        found = where(tmp_path)
        assert found.name == name
        for file in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
            assert (found / file).stat().st_mode & stat.S_IROTH, f"{name}/{file}"
