import copy

import torch

from engine.hooks.batch import Batch, forward
from engine.hooks.capture import captured
from engine.hooks.sites import Site
from engine.models.loading import LoadedModel
from tests.plugin_engine import hook_count

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
