"""Edits that do not fit a model are refused before anything runs, and leave nothing behind."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.errors import LabError, SpecError, UnknownAnatomy
from engine.hooks.batch import Batch, forward
from engine.hooks.bind import Reference, bind, hash_of
from engine.hooks.capture import captured
from engine.hooks.edit import Edit, TensorRef
from engine.hooks.positions import Index
from engine.hooks.sites import Site
from engine.hooks.wiring import edited
from engine.models.loading import LoadedModel
from tests.plugin_engine import hook_count

BATCH = Batch.of([[5, 9, 2, 7, 11, 3, 8, 4], [6, 1, 13]], side="left")
POST = Site(layer=1, name="resid_post")
ROW, TABLE = torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 96).view(3, 32)
HERE = {hash_of(tensor): tensor for tensor in (ROW, TABLE, torch.full((32,), torch.nan), torch.zeros(2, 2, 8, 32), torch.tensor(3.0))}


def _ref(tensor: Tensor) -> TensorRef:
    return TensorRef(sha256=hash_of(tensor), shape=tuple(tensor.shape))


def _edited(loaded: LoadedModel, edit: Edit, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
    with edited(loaded, bind([edit], loaded, tensors=tensors)):
        return forward(loaded.model, BATCH)


MISFITS: list[tuple[dict[str, Any], str]] = [
    ({"site": Site(layer=3, name="z"), "op": "zero"}, "layer 3 does not exist: the model has layers 0 to 2."),
    ({"site": Site(layer=2**31 - 1, name="resid_post"), "op": "zero"}, "layer 2147483647 does not exist: the model has layers 0 to 2."),
    ({"site": Site(layer=1, name="z", head=4), "op": "zero"}, "head 4 does not exist: the model has heads 0 to 3 in each layer."),
    ({"site": Site(layer=1, name="pattern", head=4), "op": "zero"}, "head 4 does not exist"),
    (
        {"site": Site(layer=1, name="k", head=2), "op": "zero"},
        "head 2 does not exist: the model has key-value groups 0 to 1 in each layer.",
    ),
    (
        {"site": Site(layer=1, name="neurons", unit=48), "op": "zero"},
        "unit 48 does not exist: site 'neurons' of the model has units 0 to 47.",
    ),
    ({"site": Site(layer=1, name="z", head=0, unit=8), "op": "zero"}, "unit 8 does not exist: site 'z' of the model has units 0 to 7."),
    ({"site": Site(name="logits", unit=340), "op": "zero"}, "unit 340 does not exist: site 'logits' of the model has units 0 to"),
    (
        {"site": POST, "op": "set", "value": [1.0] * 31},
        "a value with 31 numbers does not fit site 'blocks.1.hook_resid_post': expected 32.",
    ),
    (
        {"site": Site(layer=1, name="z"), "op": "set", "value": [1.0] * 8},
        "does not fit site 'blocks.1.attn.hook_z': expected 32 (all heads of 'z' together; name a head for one of them).",
    ),
    (
        {"site": Site(layer=1, name="head_out"), "op": "set", "value": [1.0] * 8},
        "'blocks.1.attn.hook_result': expected 32. Give one number",
    ),
    ({"site": POST, "op": "set", "value": [[1.0] * 8] * 3}, "a value with 8 numbers does not fit"),
    ({"site": POST, "op": "add", "value": [1.0] * 31, "strength": 0.0}, "a value with 31 numbers does not fit"),
    (
        {"site": POST, "op": "project_out", "value": [0.0] * 32},
        "op 'project_out' at 'blocks.1.hook_resid_post' has a direction of length 0.",
    ),
    (
        {"site": POST, "op": "project_out", "value": [[1.0] * 32, [0.0] * 32]},
        "has a direction of length 0. Give a vector that is not zero.",
    ),
    (
        {"site": POST, "op": "mean"},
        "op 'mean' puts other prompts' activations in place, but no prompts were given. Give reference prompts.",
    ),
    ({"site": POST, "op": "resample"}, "op 'resample' puts other prompts' activations in place"),
    ({"site": POST, "op": "add", "value": TensorRef(sha256="a" * 64, shape=(32,))}, "the tensor aaaaaaaaaaaa… of an edit is not here."),
    ({"site": POST, "op": "add", "value": {**_ref(ROW).model_dump(), "shape": (31,)}}, "has shape (32,); the edit says (31,)."),
    (
        {"site": POST, "op": "add", "value": _ref(torch.full((32,), torch.nan))},
        "a value for site 'blocks.1.hook_resid_post' is not finite.",
    ),
    ({"site": POST, "op": "add", "value": _ref(torch.zeros(2, 2, 8, 32))}, "a value of shape (2, 2, 8, 32) does not fit site"),
    ({"site": POST, "op": "zero", "when": {"feature": [1.0] * 8}}, "a value with 8 numbers does not fit site 'blocks.1.hook_resid_post'"),
    ({"site": POST, "op": "zero", "when": {"feature": 1.0}}, "condition at 'blocks.1.hook_resid_post' is one number: expected 32."),
    (
        {"site": POST, "op": "zero", "when": {"feature": [[1.0] * 32] * 2}},
        "the feature of a condition is one direction; it has shape (2, 32).",
    ),
    ({"site": POST, "op": "zero", "when": {"feature": [1.0] * 32, "site": Site(layer=5, name="attn_out")}}, "layer 5 does not exist"),
    ({"site": POST, "op": "zero", "when": {"feature": [1.0], "site": Site(layer=0, name="z", head=7)}}, "head 7 does not exist"),
]


@pytest.mark.parametrize(("values", "text"), MISFITS)
def test_an_edit_that_does_not_fit_the_model_says_what_would(llama: LoadedModel, values: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError) as refused:
        bind([Edit(site=POST, op="zero"), Edit(**values)], llama, tensors=HERE)
    assert text in str(refused.value)
    assert hook_count(llama.model) == 0


AT_RUN_TIME: list[tuple[dict[str, Any], str]] = [
    (
        {"site": Site(layer=1, name="q", head=0, unit=8), "op": "zero"},
        "unit 8 does not exist: site 'blocks.1.attn.hook_q' has units 0 to 7.",
    ),
    (
        {"site": Site(layer=1, name="v", head=0), "op": "add", "value": [1.0] * 9},
        "a value of shape (9,) does not fit site 'blocks.1.attn.hook_v'",
    ),
    (
        {"site": POST, "op": "zero", "when": {"feature": [1.0] * 3, "site": Site(layer=0, name="q", head=1)}},
        "the feature of a condition has 3 numbers, but the activation that it is asked of has 8.",
    ),
]


@pytest.mark.parametrize(("values", "text"), AT_RUN_TIME)
def test_what_shows_only_when_the_model_runs_is_refused_then(llama: LoadedModel, values: dict[str, Any], text: str) -> None:
    plain = forward(llama.model, BATCH)
    with pytest.raises(SpecError) as refused:
        _edited(llama, Edit(**values))
    assert text in str(refused.value)
    assert hook_count(llama.model) == 0
    assert not llama.wiring.wires
    assert torch.equal(forward(llama.model, BATCH), plain)


def test_a_unit_that_is_not_there_cannot_be_captured(llama: LoadedModel) -> None:
    with pytest.raises(SpecError, match="unit 8 does not exist"), captured(llama, [Site(layer=1, name="k", head=0, unit=8)]):
        forward(llama.model, BATCH)
    assert hook_count(llama.model) == 0


def test_a_site_that_the_architecture_lacks_is_refused(phi: LoadedModel) -> None:
    middle = Edit(site="blocks.1.hook_resid_mid", op="zero")
    text = r"PhiDecoderLayer has no site 'blocks.1.hook_resid_mid': its attention and MLP work side by side. Choose another site."
    with pytest.raises(UnknownAnatomy, match=text):
        bind([middle], phi)
    with pytest.raises(LabError, match="side by side"):
        bind([Edit(site=POST, op="zero", when={"feature": [1.0] * 32, "site": middle.site})], phi)
    with pytest.raises(UnknownAnatomy, match=text), captured(phi, [POST, middle.site]):
        pass
    assert hook_count(phi.model) == 0
    assert not phi.wiring.wires


def test_a_tensor_by_its_hash_is_the_numbers_themselves(llama: LoadedModel) -> None:
    for tensor in (ROW, TABLE):
        by_hash = _edited(llama, Edit(site=POST, op="add", value=_ref(tensor)), HERE)
        assert torch.equal(by_hash, _edited(llama, Edit(site=POST, op="add", value=tensor)))
    assert torch.equal(
        _edited(llama, Edit(site=POST, op="set", value=_ref(torch.tensor(3.0))), HERE), _edited(llama, Edit(site=POST, op="set", value=3.0))
    )
    half = ROW.half()
    assert torch.equal(
        _edited(llama, Edit(site=POST, op="add", value=_ref(half)), {hash_of(half): half}),
        _edited(llama, Edit(site=POST, op="add", value=half)),
    )


def test_a_hash_tells_tensors_apart_by_kind_shape_and_values() -> None:
    one = torch.arange(6.0)
    alike = [one, one.double(), one.view(2, 3), one.view(3, 2), one + 1, one.bfloat16(), one.int(), torch.tensor(0.0), torch.zeros(1)]
    assert len({hash_of(tensor) for tensor in alike}) == len(alike)
    assert hash_of(one.view(2, 3).T.contiguous().T) == hash_of(one.view(2, 3))
    assert hash_of(one.clone().requires_grad_()) == hash_of(one)


def test_a_direction_counts_by_where_it_points_only(llama: LoadedModel) -> None:
    for op, strength in (("clamp", 2.0), ("norm_add", 0.5), ("cap", 0.0), ("orthogonal", 3.0), ("project_out", None)):
        short, long = (_edited(llama, Edit(site=POST, op=op, value=ROW * length, strength=strength)) for length in (0.5, 64.0))
        torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("number", [3.0, -3.0])
def test_the_direction_of_one_column_is_its_sign(llama: LoadedModel, number: float) -> None:
    site = Site(layer=1, name="neurons", unit=4)
    with edited(llama, bind([Edit(site=site, op="clamp", value=number, strength=2.0)], llama)), captured(llama, [site]) as got:
        forward(llama.model, BATCH)
    torch.testing.assert_close(got[site], torch.full_like(got[site], 2.0 if number > 0 else -2.0), atol=1e-6, rtol=0)


class _Prompts:
    """Activations of other prompts, of one row, as long as asked for."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def mean(self, site: Site) -> Tensor:
        return self.x.mean(0)

    def drawn(self, site: Site, seed: int) -> Tensor:
        return self.x.roll(seed, 0)


def test_a_reference_gives_its_mean_or_its_tokens(llama: LoadedModel) -> None:
    reference = _Prompts(torch.randn(8, 32, generator=torch.Generator().manual_seed(1)))
    assert isinstance(reference, Reference)
    edits = [Edit(site=POST, op="mean", positions=Index(index=(0,))), Edit(site=POST, op="resample", seed=2, positions=Index(index=(1, 2)))]
    with captured(llama, [POST]) as got:
        forward(llama.model, BATCH)
        clean = got[POST]
        with edited(llama, bind(edits, llama, reference=reference)):
            forward(llama.model, BATCH)
    expected = clean.clone()
    expected[0, 0] = expected[1, 5] = reference.x.mean(0)
    expected[0, 1:3] = expected[1, 6:8] = torch.stack([reference.x[-1], reference.x[0]])
    torch.testing.assert_close(got[POST], expected, atol=1e-6, rtol=0)
