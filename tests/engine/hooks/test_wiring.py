"""Edits by hooks against a second way to the same end: a copy of the model whose weights are changed."""

import copy
import threading
from contextlib import ExitStack
from typing import Literal, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from engine.errors import SpecError
from engine.hooks.batch import Batch, forward
from engine.hooks.bind import bind
from engine.hooks.capture import captured
from engine.hooks.change import Change, changed
from engine.hooks.edit import Edit, When
from engine.hooks.positions import Index
from engine.hooks.sites import Site
from engine.hooks.sweep import sweep
from engine.hooks.wiring import edited
from engine.models.loading import LoadedModel
from tests.plugin_engine import as_loaded, hook_count, tiny_model

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


DIRECTION = torch.nn.functional.normalize(torch.linspace(-1, 1.5, 32), dim=0)


def _logits(loaded: LoadedModel, edits: list[Edit], batch: Batch) -> Tensor:
    with edited(loaded, bind(edits, loaded)):
        return forward(loaded.model, batch)


@pytest.mark.parametrize(
    "read", [None, *(Site(layer=1, name=name) for name in ("resid_mid", "resid_pre", "attn_out", "mlp_out")), Site(name="embed")]
)
def test_a_condition_is_asked_of_each_token_of_each_row(llama: LoadedModel, batch: Batch, read: Site | None) -> None:
    post = Site(layer=1, name="resid_post")
    with captured(llama, [post, read or post]) as got:
        forward(llama.model, batch)
        clean, product = got[post], got[read or post] @ DIRECTION
        threshold = float(product[batch.attention_mask.bool()].median())
        for relation, met in ((">", product > threshold), ("<", product < threshold)):
            when = When(feature=DIRECTION, site=read, relation=relation, threshold=threshold)
            _logits(llama, [Edit(site=post, op="zero", when=when)], batch)
            at = met & batch.attention_mask.bool()
            expected = torch.where(at[..., None], 0, clean)
            torch.testing.assert_close(_at_tokens(got[post], batch), _at_tokens(expected, batch), atol=1e-6, rtol=0)
            assert 0 < at.sum() < batch.attention_mask.sum()


def test_a_condition_sees_what_earlier_edits_made(llama: LoadedModel) -> None:
    batch, post, pre = Batch.of(PROMPTS), Site(layer=1, name="resid_post"), Site(layer=1, name="resid_pre")
    never = When(feature=DIRECTION, site=pre, threshold=1e4)
    lifted = Edit(site=pre, op="clamp", value=DIRECTION, strength=2e4)
    for order in (0, 1):
        edits = [lifted, Edit(site=post, op="zero", when=never)][:: -1 if order else 1]
        with captured(llama, [post]) as got:
            _logits(llama, edits, batch)
        assert torch.equal(_at_tokens(got[post], batch), torch.zeros(16, 32))


def test_a_head_may_be_edited_by_what_another_head_says(llama: LoadedModel) -> None:
    batch, one, other = Batch.of(PROMPTS[:1]), Site(layer=1, name="z", head=0), Site(layer=1, name="z", head=3)
    with captured(llama, [one, other]) as got:
        forward(llama.model, batch)
        clean, met = got[other], got[one] @ torch.ones(8) > 0
        _logits(llama, [Edit(site=other, op="zero", when=When(feature=[1.0] * 8, site=one))], batch)
    assert torch.equal(got[other], torch.where(met[..., None], 0, clean))
    assert 0 < met.sum() < 8


@pytest.mark.parametrize("read", ["blocks.1.hook_resid_post", "blocks.2.attn.hook_z", "ln_final.hook_normalized"])
def test_a_condition_above_its_edit_is_refused(llama: LoadedModel, read: str) -> None:
    site, batch = Site.parse(read), Batch.of(PROMPTS)
    edit = Edit(site="blocks.1.hook_resid_pre", op="zero", when=When(feature=[1.0] * 32, site=site))
    text = f"the condition at '{read}' is known only after 'blocks.1.hook_resid_pre' has been passed. Read the condition at a lower site."
    for _ in range(2):  # what an earlier call left must not be taken for an answer
        with pytest.raises(SpecError, match=text):
            _logits(llama, [edit], batch)
    with edited(llama, bind([edit], llama)):
        for _ in range(2):
            with pytest.raises(SpecError, match=text):
                forward(llama.model, batch)
    assert hook_count(llama.model) == 0
    assert not llama.wiring.wires


def test_captures_see_edits_whatever_is_put_in_place_first(loaded: LoadedModel) -> None:
    batch, sites = Batch.of(PROMPTS), [Site(layer=1, name="z"), Site(layer=1, name="head_out"), Site(layer=1, name="attn_out")]
    edits = [Edit(site=site, op="scale", strength=-2.0) for site in sites]
    seen = []
    for order in ("capture first", "edit first", "between"):
        with ExitStack() as stack:
            changes = bind(edits, loaded)
            if order == "between":
                stack.enter_context(edited(loaded, changes[:1]))
            got = stack.enter_context(captured(loaded, sites)) if order != "edit first" else {}
            stack.enter_context(edited(loaded, changes[1:] if order == "between" else changes))
            got = got or stack.enter_context(captured(loaded, sites))
            forward(loaded.model, batch)
            seen.append(got)
    for site in sites:
        assert torch.equal(seen[0][site], seen[1][site])
        assert torch.equal(seen[0][site], seen[2][site])


def test_edits_at_places_that_share_a_module_all_count(loaded: LoadedModel, batch: Batch) -> None:
    scales = {"z": 2.0, "head_out": 3.0, "attn_out": 5.0}
    sites = [Site(layer=1, name=name) for name in scales]
    for order in (1, -1):
        edits = [Edit(site=site, op="scale", strength=scales[site.name]) for site in sites][::order]
        with captured(loaded, sites) as got:
            forward(loaded.model, batch)
            clean = dict(got)
            _logits(loaded, edits, batch)
        torch.testing.assert_close(got[sites[0]], 2 * clean[sites[0]], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got[sites[1]], 6 * clean[sites[1]], atol=1e-5, rtol=1e-5)
        projection = loaded.anatomy.blocks[1].attn_out_proj
        assert projection is not None
        if loaded.anatomy.kind == "sandwich":  # the norm behind takes the size away again, up to its epsilon
            torch.testing.assert_close(got[sites[2]], 5 * clean[sites[2]], atol=1e-3, rtol=1e-3)
            continue
        bias = projection.bias if isinstance(projection.bias, Tensor) else 0
        expected = 5 * (6 * (clean[sites[2]] - bias) + bias)
        torch.testing.assert_close(_at_tokens(got[sites[2]], batch), _at_tokens(expected, batch), atol=1e-4, rtol=1e-4)


def test_the_end_of_a_layer_and_the_beginning_of_the_next_are_edited_in_turn(loaded: LoadedModel) -> None:
    batch, post, pre = Batch.of(PROMPTS), Site(layer=1, name="resid_post"), Site(layer=2, name="resid_pre")
    push = torch.linspace(0, 1, 32)
    for edits in ([Edit(site=pre, op="scale", strength=2.0), Edit(site=post, op="add", value=push)],) * 2:
        with captured(loaded, [pre, post]) as got:
            forward(loaded.model, batch)
            clean = got[post]
            _logits(loaded, edits[::-1], batch)
        torch.testing.assert_close(got[post], clean + push, atol=1e-6, rtol=0)
        torch.testing.assert_close(got[pre], 2 * (clean + push), atol=1e-6, rtol=0)


def test_edits_by_token_at_one_site_apply_in_order(llama: LoadedModel) -> None:
    batch, site = Batch.of(PROMPTS[:1]), Site(layer=1, name="mlp_out", unit=3)
    edits = [
        Edit(site=site, op="set", value=4.0, positions=Index(index=(0, 1))),
        Edit(site=site, op="scale", strength=0.5, positions=Index(index=(1, 2))),
        Edit(site=site, op="add", value=1.0, when=When(feature=1.0, threshold=1.9)),
    ]
    with captured(llama, [site]) as got:
        forward(llama.model, batch)
        clean = got[site][0, :, 0]
        _logits(llama, edits, batch)
    expected = clean.clone()
    expected[0], expected[1], expected[2] = 4.0, 2.0, clean[2] / 2
    expected[expected > 1.9] += 1
    torch.testing.assert_close(got[site][0, :, 0], expected, atol=1e-6, rtol=0)


def test_threads_with_edits_within_attention_do_not_mix(llama: LoadedModel) -> None:
    batch = Batch.of(PROMPTS)
    edits = [
        Edit(site=Site(layer=1, name="pattern", head=0), op="zero", positions=Index(index=(-1,))),
        Edit(site=Site(layer=1, name="k", head=1), op="scale", strength=-1.0),
        Edit(site=Site(layer=1, name="scores"), op="scale", strength=0.5),
        Edit(site=Site(layer=1, name="resid_post"), op="zero", when=When(feature=DIRECTION)),
    ]
    expected = [_logits(llama, [edit], batch) for edit in edits]
    wrong, site = list[int](), Site(layer=1, name="z")

    def work(which: int) -> None:
        for _ in range(8):
            with captured(llama, [site]):
                same = torch.equal(_logits(llama, [edits[which]], batch), expected[which])
            wrong.extend([] if same else [which])

    threads = [threading.Thread(target=work, args=(which,)) for which in range(len(edits))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert hook_count(llama.model) == 0
    assert not llama.wiring.wires


class _Sum(NamedTuple):
    """A metric: the sum of the last position's logits."""

    positions: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        return logits[:, -1].sum(-1)


@pytest.mark.parametrize("site", [Site(layer=2, name="mlp_out"), Site(layer=0, name="pattern", head=1)])
def test_a_sweep_inside_an_edit_is_refused(llama: LoadedModel, site: Site) -> None:
    batch, variant = Batch.of(PROMPTS), [Change(site=Site(layer=0, name="z", head=1), op="zero")]
    with edited(llama, bind([Edit(site=site, op="zero")], llama)):
        with pytest.raises(SpecError, match=r"starts from the unedited model, but an edit is in place. Put that edit into each variant."):
            list(sweep(llama, batch, [variant], _Sum()))
        assert llama.wiring.edited
    assert len(list(sweep(llama, batch, [variant], _Sum()))) == 2


def test_a_sweep_within_attention_is_the_edits_one_by_one_on_a_model_that_is_new() -> None:
    loaded, batch = as_loaded(tiny_model("llama")), Batch.of(PROMPTS, side="left")
    sites = [Site(layer=layer, name=name, head=1) for layer in (2, 1) for name in ("q", "k", "pattern")]
    edits = [Edit(site=site, op="scale", strength=0.5) for site in sites]
    edits += [Edit(site="blocks.2.hook_mlp_out", op="zero", when=When(feature=DIRECTION, site=Site(layer=1, name="attn_out")))]
    variants = [bind([edit], loaded) for edit in edits]
    got = {
        index: values for part in sweep(loaded, batch, variants, _Sum()) for index, values in zip(part.variants, part.values, strict=True)
    }
    for index, edit in enumerate(edits):
        torch.testing.assert_close(got[index], _Sum()(_logits(loaded, [edit], batch)), atol=1e-3, rtol=1e-4)
    assert hook_count(loaded.model) == 0


def test_a_model_that_answers_with_a_tuple_is_edited_too(llama: LoadedModel) -> None:
    batch, site = Batch.of(PROMPTS), Site(name="logits", unit=3)
    with edited(llama, bind([Edit(site=site, op="set", value=7.0)], llama)), torch.no_grad():
        logits = llama.model(input_ids=batch.input_ids, return_dict=False)[0]
    assert torch.equal(logits[..., 3], torch.full((3, 8), 7.0))
