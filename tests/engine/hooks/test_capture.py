import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.errors import ModelError
from engine.hooks.batch import Batch, forward
from engine.hooks.bind import bind
from engine.hooks.capture import captured
from engine.hooks.change import Change
from engine.hooks.edit import Edit, When
from engine.hooks.positions import Index
from engine.hooks.sites import PAIRS, Site
from engine.hooks.wiring import edited
from engine.models.loading import LoadedModel
from tests.plugin_engine import as_loaded, hook_count, tiny_model

PROMPTS = [[5, 9, 2, 7, 11, 3, 8, 4], [6, 1, 13]]


def test_the_residual_stream_is_the_model_s_own_hidden_states(loaded: LoadedModel) -> None:
    batch = Batch.of(PROMPTS)
    with captured(loaded, [Site(layer=layer, name="resid_pre") for layer in range(3)]) as got:
        forward(loaded.model, batch)
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
    model = copy.deepcopy(loaded.model)  # transformers leaves its own recorders on it
    states = model(**given, output_hidden_states=True).hidden_states
    for site, tensor in got.items():
        assert torch.equal(tensor, states[site.layer])


def test_heads_through_the_output_projection_add_up_to_what_attention_writes(llama: LoadedModel) -> None:
    sites = [Site(layer=1, name="z", head=head) for head in range(4)]
    with captured(llama, [*sites, Site(layer=1, name="attn_out")]) as got:
        forward(llama.model, Batch.of(PROMPTS))
    weight = llama.model.model.layers[1].self_attn.o_proj.weight
    total = sum(got[site] @ weight[:, site.head * 8 : site.head * 8 + 8].T for site in sites)
    torch.testing.assert_close(total, got[Site(layer=1, name="attn_out")], atol=1e-6, rtol=1e-5)


def test_capturing_changes_no_bit_and_leaves_nothing(loaded: LoadedModel) -> None:
    batch = Batch.of(PROMPTS)
    names = ("resid_pre", "z", "attn_out", "mlp_out", "neurons", "resid_post")
    with captured(loaded, [Site(layer=layer, name=name) for layer in range(3) for name in names]) as got:
        logits = forward(loaded.model, batch)
    assert torch.equal(logits, forward(loaded.model, batch))
    assert got[Site(layer=0, name="neurons")].shape == (2, 8, 48)
    assert hook_count(loaded.model) == 0


GRADIENT_SITES = [
    Site(name="embed"),
    Site(layer=0, name="resid_pre"),
    *(
        Site(layer=1, name=name)
        for name in ("resid_post", "attn_out", "mlp_out", "z", "neurons", "head_out", "q", "k", "v", "scores", "pattern")
    ),
    Site(layer=1, name="z", head=2),
    Site(layer=1, name="q", head=3, unit=1),
    Site(layer=2, name="pattern", head=1),
    Site(name="final"),
    Site(name="logits"),
]


@cache
def _in_double(family: str) -> LoadedModel:
    return as_loaded(tiny_model(family).double(), family)


def _metric(logits: Tensor) -> Tensor:
    """A number that all logits go into, not linearly."""
    return logits.log_softmax(-1)[..., 7].sum()


def _edits(loaded: LoadedModel) -> list[Edit]:
    """One of each kind of formula, below, beside and above what is captured."""
    u, d_head = [1.0, -2.0] * 16, loaded.anatomy.d_head
    return [
        Edit(site="blocks.0.hook_resid_pre", op="norm_add", value=u, strength=0.3),
        Edit(
            site=Site(layer=0, name="z", head=1),
            op="norm_add",
            value=[1.0, 2.0] * (d_head // 2),
            strength=0.5,
            positions=Index(index=(1, -1)),
        ),
        Edit(site="blocks.1.hook_resid_post", op="orthogonal", value=u, strength=-1.0, positions=Index(index=(-1,))),
        Edit(site=Site(layer=1, name="k", head=0), op="scale", strength=1.5),
        Edit(site=Site(layer=1, name="pattern"), op="scale", strength=0.5, keys=Index(index=(0,))),
        Edit(site=Site(layer=1, name="neurons", unit=3), op="set", value=0.5, positions=Index(index=(0,))),
        Edit(site="blocks.2.hook_attn_out", op="cap", value=u, strength=0.1),
        Edit(site="unembed.hook_out", op="scale", strength=0.7, when=When(feature=u, site=Site(layer=2, name="resid_post"))),
    ]


class _Nudge:
    """An edit of the test's own: adds to one place."""

    def __init__(self, direction: Tensor) -> None:
        self.direction = direction

    def at(self, site: Site, size: float) -> Change:
        return Change(site=site, op="add", value=self.direction, strength=size)


@pytest.mark.parametrize(("family", "edited_too"), [("gpt2", False), ("gpt2", True), ("gemma2", True), ("phi", False)])
def test_gradients_are_the_slopes_of_small_changes(family: str, edited_too: bool) -> None:
    loaded, batch = _in_double(family), Batch.of(PROMPTS)  # padded on the left, Gemma's own attention is not a number in double precision
    changes = bind(_edits(loaded), loaded) if edited_too else []
    step, off = (1e-5, 1e-5) if family == "gpt2" else (2e-3, 2e-2)  # the others' norms and softmax round to single precision
    with edited(loaded, changes), captured(loaded, GRADIENT_SITES, grad=True) as got, torch.enable_grad():
        _metric(forward(loaded.model, batch, grad=True)[batch.attention_mask.bool()]).backward()
    for site in GRADIENT_SITES:
        real = batch.attention_mask.bool()
        at = real[:, None, :, None] & real[:, None, None, :] if site.name in PAIRS else real
        at = at[:, 0] if site.name in PAIRS and site.head is not None else at
        noise = torch.randn(got[site].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        seen = torch.ones(batch.width, batch.width).tril().triu(-5).bool()  # Gemma's window is six tokens wide
        noise = noise * (at & seen if site.name in PAIRS else at.view(*at.shape, *[1] * (noise.dim() - at.dim())))
        nudge, values = _Nudge(noise), []
        for size in (step, -step):
            with edited(loaded, [*changes, nudge.at(site, size)]):
                values.append(float(_metric(forward(loaded.model, batch)[real])))
        slope, expected = float((got.grad(site) * noise).sum()), (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(expected, rel=off, abs=off), site.label
        assert abs(expected) > 1e-6 or site.name in PAIRS, site.label


def test_gradients_are_those_of_hooks_written_by_hand(loaded: LoadedModel) -> None:
    batch, block = Batch.of(PROMPTS), loaded.anatomy.blocks[1]
    sites = {"resid_post": block.layer, "attn_out": block.attn_end, "mlp_out": block.mlp_end}
    with captured(loaded, [Site(layer=1, name=name) for name in sites], grad=True) as got:
        _metric(forward(loaded.model, batch, grad=True)).backward()
    model, seen = copy.deepcopy(loaded.model).requires_grad_(True), dict[str, Tensor]()

    def keep(name: str, output: Any) -> None:
        seen[name] = output[0] if isinstance(output, tuple) else output
        seen[name].retain_grad()

    paths = {module: path for path, module in loaded.model.named_modules()}
    for name, module in sites.items():
        model.get_submodule(paths[module]).register_forward_hook(lambda _m, _a, output, name=name: keep(name, output))
    _metric(model(**_given(batch)).logits).backward()
    for name in sites:
        torch.testing.assert_close(got.grad(Site(layer=1, name=name)), seen[name].grad, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(got[Site(layer=1, name=name)].detach(), seen[name].detach(), atol=1e-5, rtol=0)
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


def _given(batch: Batch) -> dict[str, Tensor]:
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "position_ids": batch.position_ids}


def test_gradients_begin_anew_where_an_edit_puts_constants(llama: LoadedModel) -> None:
    batch, below, at = Batch.of(PROMPTS), Site(layer=0, name="resid_post"), Site(layer=1, name="resid_post")
    replaced = bind([Edit(site=at, op="set", value=[0.5, -0.25] * 16)], llama)
    with edited(llama, replaced), captured(llama, [below, at, Site(layer=2, name="mlp_out")], grad=True) as got:
        _metric(forward(llama.model, batch, grad=True)).backward()
    assert got.grad(at).abs().sum() > 0
    assert got.grad(Site(layer=2, name="mlp_out")).abs().sum() > 0
    with pytest.raises(ModelError, match=r"there is no gradient at 'blocks.0.hook_resid_post'. Capture with grad=True, and call backward"):
        got.grad(below)


def test_gradients_that_were_not_kept_are_refused(llama: LoadedModel) -> None:
    site = Site(layer=1, name="z")
    with captured(llama, [site]) as got:
        forward(llama.model, Batch.of(PROMPTS), grad=True)
    with pytest.raises(ModelError, match="there is no gradient at"):
        got.grad(site)
    with pytest.raises(ModelError, match="the model runs without them"), captured(llama, [site], grad=True):
        forward(llama.model, Batch.of(PROMPTS))
    assert hook_count(llama.model) == 0
    assert not llama.wiring.wires


def test_what_was_captured_does_not_change_afterwards(loaded: LoadedModel) -> None:
    batch, sites = Batch.of(PROMPTS), [Site(layer=1, name=name) for name in ("resid_pre", "attn_out", "z", "v", "pattern", "resid_post")]
    with captured(loaded, [*sites, Site(name="logits")]) as got:
        forward(loaded.model, batch)
        kept = {site: (x, x.clone()) for site, x in got.items()}
        with edited(loaded, bind([Edit(site=site, op="zero") for site in sites], loaded)):
            forward(loaded.model, batch)
    assert all(torch.equal(x, copied) for x, copied in kept.values())
    assert not any(torch.equal(got[site], kept[site][0]) for site in sites)


def test_parts_of_a_site_are_parts_of_the_whole(loaded: LoadedModel) -> None:
    wholes = [Site(layer=1, name=name) for name in ("z", "head_out", "q", "k", "v", "scores", "pattern")]
    heads = [site.model_copy(update={"head": 1}) for site in wholes]
    units = [site.model_copy(update={"unit": 4}) for site in heads[:5]]
    with captured(loaded, [*wholes, *heads, *units]) as got:
        forward(loaded.model, Batch.of(PROMPTS))
    for whole, head in zip(wholes, heads, strict=True):
        x = got[whole].unflatten(-1, (4, -1)) if whole.name == "z" else got[whole]
        assert torch.equal(got[head], x[:, 1] if whole.name in PAIRS else x[:, :, 1])
    for head, unit in zip(heads, units, strict=False):
        assert torch.equal(got[unit], got[head][..., 4:5])
