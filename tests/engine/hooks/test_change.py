"""What each operation makes of an activation, against a formula written down again here, at every site of every family."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

import pytest
import torch
from torch import Tensor

from engine.errors import SpecError
from engine.hooks.batch import Batch, forward
from engine.hooks.bind import bind
from engine.hooks.call import Calls, TokenView
from engine.hooks.capture import captured
from engine.hooks.change import Change, changed
from engine.hooks.edit import PAIR_OPS, RULES, Edit, Op
from engine.hooks.positions import And, Index, Not, Or, Slice, Tokens
from engine.hooks.sites import PAIRS, Site
from engine.hooks.wiring import edited
from engine.models.loading import LoadedModel
from tests.engine.hooks.test_positions import chosen_one_by_one
from tests.plugin_engine import hook_count

Where = Literal["alone", "left", "right"]
PROMPTS = [[5, 9, 2, 7, 11, 3, 8, 4], [6, 1, 13], [2, 2, 40, 41, 7]]
SITES = (
    *(Site(layer=1, name=name) for name in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "neurons")),
    Site(layer=1, name="mlp_out", unit=5),
    Site(layer=1, name="z", head=2),
    Site(layer=1, name="z", head=1, unit=3),
    Site(layer=1, name="z", unit=30),
    Site(layer=1, name="neurons", unit=17),
    Site(layer=1, name="head_out"),
    Site(layer=1, name="head_out", head=2),
    Site(layer=1, name="q"),
    Site(layer=1, name="q", head=3),
    Site(layer=1, name="q", head=0, unit=2),
    Site(layer=1, name="k", head=1),
    Site(layer=1, name="v", head=0),
    Site(layer=1, name="scores", head=1),
    Site(layer=1, name="scores"),
    Site(layer=1, name="pattern", head=2),
    Site(layer=1, name="pattern"),
    *(Site(name=name) for name in ("embed", "final", "logits")),
)
SOME = Or(of=(Index(index=(0, -1)), And(of=(Tokens(ids=(2, 7, 13)), Not(of=Index(index=(1,)))))))
"""Each of the prompts has tokens that this chooses and tokens that it does not."""


def sites_of(loaded: LoadedModel) -> list[Site]:
    """The sites that a model has."""
    return [site for site in SITES if site.name != "resid_mid" or loaded.anatomy.kind != "parallel"]


def batch_of(where: Where) -> Batch:
    """The prompts, padded on one side, or the longest alone."""
    return Batch.of(PROMPTS[:1] if where == "alone" else PROMPTS, pad=17, side="right" if where == "right" else "left")


def whole(site: Site) -> Site:
    """The site with all its heads and columns."""
    return site.model_copy(update={"head": None, "unit": None})


@cache
def _clean(loaded: LoadedModel, where: Where) -> tuple[dict[Site, Tensor], Tensor]:
    with captured(loaded, [whole(site) for site in sites_of(loaded)]) as got:
        forward(loaded.model, batch_of(where))
    return dict(got), forward(loaded.model, batch_of(where))


def _part(x: Tensor, site: Site, d_head: int) -> Tensor:
    """A view of the head and the column, as the documentation says where they are."""
    if site.head is not None:
        if site.name == "z":
            x = x[..., site.head * d_head : (site.head + 1) * d_head]
        else:
            x = x[:, site.head] if site.name in PAIRS else x[:, :, site.head]
    return x if site.unit is None else x[..., site.unit : site.unit + 1]


class _Others:
    """Made-up activations of other prompts; shorter than the texts, so that the last one stands for what is missing."""

    LENGTH = 5

    def __init__(self, width: int, rows: int) -> None:
        self.table = torch.randn(rows, self.LENGTH, width, generator=torch.Generator().manual_seed(3))

    def mean(self, site: Site) -> Tensor:
        return self.table.mean((0, 1))

    def drawn(self, site: Site, seed: int) -> Tensor:
        return self.table.roll(seed, 0)


class _Made(NamedTuple):
    """An edit with what it is expected to put in place of x [batch, pos, ..., width]."""

    edit: Edit
    value: Tensor
    strength: float
    reaches: int | None


def _made(site: Site, op: Op, x: Tensor, others: _Others, positions: Any) -> _Made:
    """An edit whose value has the width of the site; tables reach as far as their length."""
    if site.name in PAIRS:
        number, strength = -0.7, {"add": 3.0, "scale": 0.25}.get(op)
        edit = Edit(site=site, op=op, value=number if op in ("set", "add") else None, strength=strength, positions=positions, keys=KEYS)
        return _Made(edit, torch.tensor(number), strength or 1.0, None)
    value = torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(len(site.label))) + 0.1
    strength = {"add": 1.5, "scale": -0.5, "clamp": 2.0, "orthogonal": -1.0, "cap": -0.75, "norm_add": 0.8}.get(op)
    reaches = None
    if op == "mean":
        value = others.mean(site)
    elif op == "resample":
        value = others.drawn(site, 1)
    elif op == "set":
        value, reaches = torch.stack([value, -value, 2 * value]), 3
    given = value if RULES[op].value != "no" else None
    seed = 1 if op == "resample" else 0
    return _Made(Edit(site=site, op=op, value=given, strength=strength, positions=positions, seed=seed), value, strength or 1.0, reaches)


KEYS = Slice(start=0, stop=2)


def _expected(made: _Made, x: Tensor) -> Tensor:
    """The formula, for a vector or a tensor of vectors along the last axis."""
    s, u = made.strength, made.value.double() / made.value.double().norm(dim=-1, keepdim=True)
    along = (x * u).sum(-1, keepdim=True) if made.value.dim() else x
    match made.edit.op:
        case "zero":
            return 0 * x
        case "set" | "mean" | "resample":
            return made.value.double().expand_as(x)
        case "add":
            return x + s * made.value.double()
        case "scale":
            return s * x
        case "project_out":
            return x - along * u
        case "orthogonal":
            return x - along * u + s * along * u
        case "clamp":
            return x - along * u + s * u
        case "cap":
            return x - along * u + along.clamp(max=s) * u
        case "norm_add":
            return x + s * x.norm(dim=-1, keepdim=True) * u


def _changed_by_hand(made: _Made, x: Tensor, batch: Batch) -> Tensor:
    """The part of the clean activation with the edit made token by token. Scores and patterns only between tokens that see each other."""
    out, real = x.double().clone(), batch.attention_mask.bool()
    for row in range(batch.size):
        ids, columns = batch.input_ids[row][real[row]].tolist(), real[row].nonzero()[:, 0].tolist()
        chosen = chosen_one_by_one(made.edit.positions, ids, len(ids))
        for index, column in enumerate(columns):
            if not chosen[index] or (made.reaches is not None and index >= made.reaches):
                continue
            if made.edit.site.name in PAIRS:
                keys = [key for at, key in enumerate(columns) if at < 2 and at <= index]
                out[row, ..., column, keys] = _expected(made, out[row, ..., column, keys])
            else:
                out[row, column] = _expected(_at_token(made, row, index), out[row, column])
    return out


def _at_token(made: _Made, row: int, index: int) -> _Made:
    if made.edit.op == "resample":
        return made._replace(value=made.value[row, min(index, _Others.LENGTH - 1)])
    return made._replace(value=made.value[index]) if made.edit.op == "set" else made


def _check(loaded: LoadedModel, where: Where, site: Site, op: Op) -> None:
    batch, (clean, plain) = batch_of(where), _clean(loaded, where)
    x = _part(clean[whole(site)], site, loaded.anatomy.d_head)
    others = _Others(x.shape[-1], batch.size)
    made = _made(site, op, x, others, SOME)
    with captured(loaded, [whole(site), site]) as got, edited(loaded, bind([made.edit], loaded, reference=others)):
        logits = forward(loaded.model, batch)
    expected = clean[whole(site)].double().clone()
    _part(expected, site, loaded.anatomy.d_head).copy_(_changed_by_hand(made, x, batch))
    real, what = batch.attention_mask.bool(), f"{op} at {site.label}"
    at = real if site.name not in PAIRS else real[:, None, :, None] & real[:, None, None, :]
    at = at if site.name not in PAIRS else at.expand_as(expected) & (clean[Site(layer=1, name="scores")] > -1e30)
    torch.testing.assert_close(got[whole(site)][at].double(), expected[at], atol=1e-5, rtol=1e-5, msg=lambda text: f"{what}: {text}")
    assert torch.equal(got[site], _part(got[whole(site)], site, loaded.anatomy.d_head)), what
    if op != "cap" or not torch.equal(expected[at].float(), clean[whole(site)][at]):  # a cap may be above all there is
        assert (logits - plain)[real].abs().max() > 1e-6, f"{what} has no effect"


def _ops(site: Site) -> Sequence[Op]:
    return [op for op in get_args(Op) if op in PAIR_OPS] if site.name in PAIRS else get_args(Op)


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.label.replace(" ", "-"))
def test_every_operation_at_every_site_is_its_formula(llama: LoadedModel, site: Site) -> None:
    for op in _ops(site):
        _check(llama, "left", site, op)
    assert hook_count(llama.model) == 0


@pytest.mark.parametrize("where", ["alone", "left", "right"])
def test_each_site_of_each_family_is_edited_by_the_formula(loaded: LoadedModel, where: Where) -> None:
    turn = sum(loaded.ref.id.encode()) + 3 * len(where)
    for index, site in enumerate(sites_of(loaded)):
        ops = _ops(site)
        if where == "left" or (index + turn) % 2:
            _check(loaded, where, site, ops[(index + turn) % len(ops)])
    assert hook_count(loaded.model) == 0


@pytest.mark.parametrize("site", [Site(layer=1, name="z"), Site(layer=1, name="z", head=2), Site(layer=0, name="v", head=1)])
def test_a_number_is_put_in_every_column(llama: LoadedModel, site: Site) -> None:
    with edited(llama, bind([Edit(site=site, op="set", value=0.5)], llama)), captured(llama, [site]) as got:
        forward(llama.model, batch_of("alone"))
    assert torch.equal(got[site], torch.full_like(got[site], 0.5))


STRENGTHS = [("add", 2.0), ("scale", 0.0), ("clamp", -3.0), ("orthogonal", 0.0), ("cap", 0.1), ("norm_add", -1.0)]


@pytest.mark.parametrize(("op", "strength"), STRENGTHS)
@pytest.mark.parametrize("site", [Site(layer=1, name="resid_post"), Site(layer=1, name="z", head=2), Site(layer=1, name="k", head=1)])
def test_a_strength_for_each_row_is_each_strength_alone(llama: LoadedModel, op: Op, strength: float, site: Site) -> None:
    batch, strengths = batch_of("left"), [strength, 0.5, 7.0]
    value = None if op == "scale" else torch.arange(1.0, 1 + (llama.anatomy.width(site) or llama.anatomy.d_head))
    alone = [bind([Edit(site=site, op=op, value=value, strength=one, positions=SOME)], llama)[0] for one in strengths]
    together = Change(site=site, op=op, value=alone[0].value, strength=torch.tensor(strengths), positions=SOME)
    with edited(llama, [together]):
        logits = forward(llama.model, batch)
    for row, change in enumerate(alone):
        with edited(llama, [change]):
            assert torch.equal(forward(llama.model, batch)[row], logits[row])


def test_rows_at_their_neutral_strength_stay_as_they_are(llama: LoadedModel) -> None:
    batch, site, plain = batch_of("left"), Site(layer=1, name="resid_post"), forward(llama.model, batch_of("left"))
    u = torch.nn.functional.normalize(torch.arange(1.0, 33.0), dim=0)
    for op, neutral in (("add", 0.0), ("scale", 1.0), ("orthogonal", 1.0), ("cap", math.inf), ("norm_add", 0.0)):
        change = Change(site=site, op=op, value=None if op == "scale" else u, strength=torch.tensor([neutral, -6.0, neutral]))
        with edited(llama, [change]):
            logits = forward(llama.model, batch)
        assert torch.equal(logits[[0, 2]], plain[[0, 2]]), op
        assert not torch.allclose(logits[1], plain[1]), op


def test_an_edit_at_its_neutral_strength_is_not_there(loaded: LoadedModel) -> None:
    batch, u = batch_of("left"), [1.0] * 32
    edits = [
        Edit(site="blocks.1.hook_resid_post", op="add", value=u, strength=0.0),
        Edit(site="blocks.0.hook_mlp_out", op="norm_add", value=u, strength=0.0),
        Edit(site="blocks.1.attn.hook_k", op="scale", strength=1.0),
        Edit(site="blocks.1.attn.hook_pattern", op="scale", strength=1.0),
        Edit(site="blocks.1.attn.hook_z", op="scale", strength=1.0),
        Edit(site="hook_embed", op="orthogonal", value=u, strength=1.0, positions=SOME),
        Edit(site="ln_final.hook_normalized", op="cap", value=u, strength=math.inf, positions=SOME),
    ]
    plain, changes = forward(loaded.model, batch), bind(edits, loaded)
    assert changes == []
    with edited(loaded, changes):
        assert hook_count(loaded.model) == 0
        assert not loaded.wiring.edited
        assert torch.equal(forward(loaded.model, batch), plain)


def test_only_the_rows_that_are_meant_change(llama: LoadedModel) -> None:
    batch, plain = batch_of("left"), forward(llama.model, batch_of("left"))
    for site in (Site(layer=1, name="resid_post"), Site(layer=1, name="v", head=1), Site(layer=1, name="pattern"), Site(name="logits")):
        edits = [Edit(site=site, op="zero", positions=SOME), Edit(site=site, op="set", value=0.25, positions=Index(index=(1,)))]
        with edited(llama, bind(edits, llama)):
            every = forward(llama.model, batch)
        with edited(llama, bind(edits, llama, rows=slice(1, 2))):
            logits = forward(llama.model, batch)
        others = [row for row in range(3) if row != 1]
        real = batch.attention_mask[others].bool()
        torch.testing.assert_close(logits[others][real], plain[others][real], atol=1e-5 if site.name == "pattern" else 0, rtol=0)
        assert torch.equal(logits[1], every[1])
        assert not torch.allclose(every, plain, atol=1e-3)


def test_an_activation_is_never_changed_in_place(llama: LoadedModel) -> None:
    calls = Calls.at(TokenView.of(batch_of("left")))
    for site, shape in ((Site(layer=0, name="z", head=1), (3, 8, 32)), (Site(layer=0, name="q", head=1), (3, 8, 4, 8))):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        before = x.clone()
        for edit in (Edit(site=site, op="zero"), Edit(site=site, op="set", value=[[1.0] * 8, [2.0] * 8], positions=SOME)):
            y = changed(x, bind([edit], llama, rows=slice(1, 3))[0], llama.anatomy, calls)
            assert not torch.equal(y, x)
            y.fill_(7.0)
            assert torch.equal(x, before)


WRONG = [
    ({"op": "set", "value": torch.zeros(7)}, r"a value of shape \(7,\) does not fit site 'blocks.1.hook_resid_post' of shape \(3, 8, 32\)"),
    ({"op": "set", "value": torch.zeros(4, 8, 32)}, r"a value of shape \(4, 8, 32\) does not fit"),
    ({"op": "set", "value": torch.zeros(1, 3, 8, 32)}, "does not fit"),
    ({"op": "set", "value": torch.zeros(2, 8, 32), "by_token": True}, "a value for 2 rows does not fit a batch of 3 at site"),
    ({"op": "scale", "strength": torch.ones(2)}, "2 strengths do not fit 3 rows. Give one strength for each row, or one for all."),
]


@pytest.mark.parametrize(("made", "text"), WRONG)
def test_what_does_not_fit_the_batch_is_refused_and_nothing_stays(llama: LoadedModel, made: dict[str, Any], text: str) -> None:
    change = Change(site=Site(layer=1, name="resid_post"), **made)
    with pytest.raises(SpecError, match=text), edited(llama, [change]):
        forward(llama.model, batch_of("left"))
    assert hook_count(llama.model) == 0
    assert not llama.wiring.wires


def test_a_batch_of_one_row_does_not_grow(llama: LoadedModel) -> None:
    site = Site(layer=1, name="resid_post")
    for change in (Change(site=site, op="add", value=torch.zeros(3, 8, 32)), Change(site=site, op="scale", strength=torch.ones(3))):
        with pytest.raises(SpecError, match="fit"), edited(llama, [change]):
            forward(llama.model, batch_of("alone"))
