"""Edits by hooks against a second way to the same end: a copy of the model whose weights are changed."""

import copy
import threading
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from engine.errors import SpecError
from engine.hooks.batch import Batch, forward
from engine.hooks.capture import captured
from engine.hooks.change import Change, changed
from engine.hooks.sites import Site
from engine.hooks.wiring import edited
from engine.models.loading import LoadedModel
from tests.plugin_engine import hook_count

PROMPTS = [[5, 9, 2, 7, 11, 3, 8, 4], [6, 1, 13], [2, 2, 40, 41, 7]]
PROJECTIONS = {
    "gpt2": "transformer.h.{}.attn.c_proj",
    "gpt_neox": "gpt_neox.layers.{}.attention.dense",
    "phi": "model.layers.{}.self_attn.dense",
}
MLP_OUT = {"gpt2": "transformer.h.{}.mlp.c_proj", "gpt_neox": "gpt_neox.layers.{}.mlp.dense_4h_to_h", "phi": "model.layers.{}.mlp.fc2"}
"""Written by hand, so that the engine's own way of finding them is tested."""


def _module(loaded: LoadedModel, table: dict[str, str], default: str, layer: int) -> tuple[nn.Module, nn.Module]:
    """A copy of the model, and one of its modules."""
    model = copy.deepcopy(loaded.model)
    path = table.get(model.config.model_type, default).format(layer)
    return model, model.get_submodule(path)


def _without_head(loaded: LoadedModel, layer: int, head: int) -> nn.Module:
    model, projection = _module(loaded, PROJECTIONS, "model.layers.{}.self_attn.o_proj", layer)
    rows = projection.weight if model.config.model_type == "gpt2" else projection.weight.T
    d_head = rows.shape[0] // 4
    rows[head * d_head : (head + 1) * d_head] = 0
    return model


def _without_output(loaded: LoadedModel, name: str, layer: int) -> nn.Module:
    table, default = (PROJECTIONS, "model.layers.{}.self_attn.o_proj") if name == "attn_out" else (MLP_OUT, "model.layers.{}.mlp.down_proj")
    model, projection = _module(loaded, table, default, layer)
    for parameter in projection.parameters():
        parameter.zero_()
    return model


def _at_tokens(logits: Tensor, batch: Batch) -> Tensor:
    return logits[batch.attention_mask.bool()]


@pytest.fixture(params=["alone", "left", "right"])
def batch(request: pytest.FixtureRequest) -> Batch:
    side: Literal["left", "right"] = "left" if request.param == "left" else "right"
    return Batch.of(PROMPTS[:1] if request.param == "alone" else PROMPTS, side=side)


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (1, 3), (2, 1)])
def test_zeroing_a_head_is_zeroing_its_rows_of_the_output_projection(loaded: LoadedModel, batch: Batch, layer: int, head: int) -> None:
    with edited(loaded, [Change(site=Site(layer=layer, name="z", head=head), op="zero")]):
        by_hook = forward(loaded.model, batch)
    by_weights = forward(_without_head(loaded, layer, head), batch)
    torch.testing.assert_close(_at_tokens(by_hook, batch), _at_tokens(by_weights, batch), atol=1e-5, rtol=0)
    assert (by_hook - forward(loaded.model, batch)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["attn_out", "mlp_out"])
def test_zeroing_an_output_is_zeroing_its_projection(loaded: LoadedModel, batch: Batch, name: Literal["attn_out", "mlp_out"]) -> None:
    with edited(loaded, [Change(site=Site(layer=1, name=name), op="zero")]):
        by_hook = forward(loaded.model, batch)
    if loaded.anatomy.kind == "sandwich":  # the norm behind the projection turns zeros into zeros
        assert loaded.anatomy.blocks[1].attn_end is not loaded.anatomy.blocks[1].attn
    by_weights = forward(_without_output(loaded, name, 1), batch)
    torch.testing.assert_close(_at_tokens(by_hook, batch), _at_tokens(by_weights, batch), atol=1e-5, rtol=0)


def test_an_edit_makes_a_new_tensor(llama: LoadedModel) -> None:
    x = torch.ones(2, 3, 32)
    edit = Change(site=Site(layer=0, name="z", head=1), op="set", value=torch.arange(8.0), rows=slice(1, 2))
    y = changed(x, edit, llama.anatomy)
    assert torch.equal(x, torch.ones(2, 3, 32))
    assert torch.equal(y[1, :, 8:16], torch.arange(8.0).expand(3, 8))
    y[1, :, 8:16] = 1
    assert torch.equal(x, y)


def test_edits_at_one_site_apply_in_order_and_are_seen_by_later_captures(llama: LoadedModel) -> None:
    site = Site(layer=1, name="resid_post")
    edits = [Change(site=site, op="zero"), Change(site=site, op="add", value=torch.full((32,), 2.0))]
    with edited(llama, edits), captured(llama, [site, Site(layer=2, name="resid_pre")]) as got:
        forward(llama.model, Batch.of(PROMPTS))
    assert all(torch.equal(x, torch.full((3, 8, 32), 2.0)) for x in got.values())


def test_after_an_edit_the_model_is_as_before(loaded: LoadedModel) -> None:
    batch = Batch.of(PROMPTS)
    before = forward(loaded.model, batch)
    with edited(loaded, [Change(site=Site(layer=0, name="mlp_out"), op="zero")]):
        forward(loaded.model, batch)
    assert torch.equal(forward(loaded.model, batch), before)
    assert hook_count(loaded.model) == 0


def test_nothing_stays_on_the_model_after_an_error(llama: LoadedModel) -> None:
    edit = Change(site=Site(layer=0, name="z", head=0), op="zero")
    with pytest.raises(KeyError), edited(llama, [edit]):
        raise KeyError("in the middle")
    wrong_width = Change(site=Site(layer=1, name="z", head=0), op="set", value=torch.zeros(5))
    with pytest.raises(SpecError, match="does not fit"), edited(llama, [edit, wrong_width]):
        forward(llama.model, Batch.of(PROMPTS))
    with pytest.raises(SpecError, match="layer 9 does not exist"), edited(llama, [edit, Change(site=Site(layer=9, name="z"), op="zero")]):
        pass
    assert hook_count(llama.model) == 0


def test_two_threads_on_one_model_do_not_mix(llama: LoadedModel) -> None:
    batch, heads = Batch.of(PROMPTS), (0, 1, 2, 3)
    expected = {head: _ablated(llama, batch, head) for head in heads}
    wrong: list[int] = []

    def work(head: int) -> None:
        wrong.extend(head for _ in range(15) if not torch.equal(_ablated(llama, batch, head), expected[head]))

    threads = [threading.Thread(target=work, args=(head,)) for head in heads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def _ablated(loaded: LoadedModel, batch: Batch, head: int) -> Tensor:
    with edited(loaded, [Change(site=Site(layer=1, name="z", head=head), op="zero")]):
        return forward(loaded.model, batch)
