import pytest
import torch
from torch import Tensor, nn

from engine.errors import ModelError
from engine.hooks.anatomy import Anatomy
from engine.hooks.batch import Batch, forward
from engine.hooks.bind import bind
from engine.hooks.capture import captured
from engine.hooks.edit import Edit
from engine.hooks.heads import output_weight
from engine.hooks.positions import Index, Positions
from engine.hooks.sites import Site
from engine.hooks.wiring import edited
from engine.models.loading import LoadedModel
from tests.plugin_engine import as_loaded, hook_count, tiny_model

BATCH = Batch.of([[5, 9, 2, 7, 11, 3, 8, 4], [6, 1, 13]], side="left")
ALL_HEADS = Site(layer=1, name="head_out")


def _projected(anatomy: Anatomy) -> tuple[Tensor, Tensor]:
    """What the output projection of layer 1 gives, and its bias; without the norm that may follow."""
    projection, seen = anatomy.blocks[1].attn_out_proj, list[Tensor]()
    assert projection is not None
    handle = projection.register_forward_hook(lambda _module, _args, output: seen.append(output))
    forward(anatomy.whole, BATCH)
    handle.remove()
    bias = projection.bias if isinstance(projection.bias, Tensor) else torch.zeros(32)
    return seen[0], bias


def test_what_the_heads_add_is_what_attention_writes(loaded: LoadedModel) -> None:
    with captured(loaded, [ALL_HEADS, Site(layer=1, name="attn_out")]) as got:
        forward(loaded.model, BATCH)
    written, bias = _projected(loaded.anatomy)
    assert got[ALL_HEADS].shape == (2, 8, 4, 32)
    torch.testing.assert_close(got[ALL_HEADS].sum(2) + bias, written, atol=1e-5, rtol=0)
    if loaded.anatomy.kind != "sandwich":
        torch.testing.assert_close(got[Site(layer=1, name="attn_out")], written, atol=0, rtol=0)


@pytest.mark.parametrize("positions", [Edit.model_fields["positions"].default, Index(index=(1, -1))])
def test_zeroing_what_a_head_adds_is_zeroing_its_z(loaded: LoadedModel, positions: Positions) -> None:
    plain, results = forward(loaded.model, BATCH), list[Tensor]()
    for name in ("head_out", "z"):
        site = Site(layer=1, name=name, head=2)
        with edited(loaded, bind([Edit(site=site, op="zero", positions=positions)], loaded)):
            results.append(forward(loaded.model, BATCH))
    real = BATCH.attention_mask.bool()
    torch.testing.assert_close(results[0][real], results[1][real], atol=1e-5, rtol=0)
    assert (results[0] - plain)[real].abs().max() > 1e-3


def test_looking_at_heads_changes_no_bit(loaded: LoadedModel) -> None:
    plain = forward(loaded.model, BATCH)
    with captured(loaded, [ALL_HEADS, Site(layer=0, name="head_out", head=3)]):
        assert torch.equal(forward(loaded.model, BATCH), plain)


class _Packed(nn.Linear):
    """A projection whose weight is kept in bytes, as after quantisation."""

    def __init__(self, bytes_: Tensor) -> None:
        super().__init__(32, 32)
        self.weight = nn.Parameter(bytes_, requires_grad=False)


@pytest.mark.parametrize("weight", [torch.zeros(512, 1, dtype=torch.uint8), torch.zeros(32, 32, dtype=torch.int8)])
def test_quantised_weights_cannot_be_cut_into_heads(weight: Tensor) -> None:
    with pytest.raises(ModelError) as refused:
        output_weight(_Packed(weight), 4)
    assert str(refused.value) == (
        f"W_O, which says what one head adds, is stored in {weight.dtype}, so there is no exact matrix of it. "
        "Load the model without quantization, or ask for site 'z'."
    )


def test_a_refused_head_leaves_nothing_on_the_model() -> None:
    loaded = as_loaded(tiny_model("llama"))
    projection = loaded.anatomy.blocks[1].attn_out_proj
    assert projection is not None
    projection.weight = nn.Parameter(torch.zeros(32, 32, device="meta"), requires_grad=False)
    first = Edit(site=Site(layer=0, name="z", head=0), op="zero")
    with (
        pytest.raises(ModelError, match=r"W_O.* is kept off the device.* Load the model on one device, or ask for site 'z'"),
        edited(loaded, bind([first, Edit(site=ALL_HEADS, op="zero")], loaded)),
    ):
        pass
    with pytest.raises(ModelError, match="kept off the device"), captured(loaded, [Site(layer=0, name="head_out"), ALL_HEADS]):
        pass
    assert hook_count(loaded.model) == 0
    assert not loaded.wiring.wires
    assert loaded.model.config._attn_implementation == "sdpa"
