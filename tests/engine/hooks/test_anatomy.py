import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from engine.errors import SpecError, UnknownAnatomy
from engine.hooks.batch import Batch, forward
from engine.hooks.capture import captured
from engine.hooks.discovery import find_anatomy
from engine.hooks.sites import Site
from engine.models.loading import LoadedModel
from tests.plugin_engine import hook_count, tiny_model

KINDS = {"gpt_neox_parallel": "parallel", "phi": "parallel", "gemma2": "sandwich", "gemma3": "sandwich"}
WIDE_HEADS = {"qwen3", "gemma2", "gemma3"}
PROMPTS = [[5, 9, 2, 7, 11, 3, 8, 4], [6, 1, 13]]


def test_every_family_is_found_by_its_structure(loaded: LoadedModel) -> None:
    anatomy = loaded.anatomy
    assert (anatomy.n_layers, anatomy.n_heads, anatomy.d_model, anatomy.d_mlp) == (3, 4, 32, 48)
    assert anatomy.d_head == (12 if loaded.ref.id in WIDE_HEADS else 8)
    assert anatomy.kind == KINDS.get(loaded.ref.id, "serial")
    assert anatomy.exchangeable


def test_finding_leaves_nothing_on_the_model(loaded: LoadedModel) -> None:
    assert hook_count(loaded.model) == 0


def test_the_residual_stream_is_the_sum_of_what_is_written_to_it(loaded: LoadedModel) -> None:
    names = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    sites = [Site(layer=layer, name=name) for layer in range(3) for name in names]
    with captured(loaded, sites) as got:
        forward(loaded.model, Batch.of(PROMPTS))
    for layer in range(3):
        pre, attn, mlp, post = (got[Site(layer=layer, name=name)] for name in names)
        torch.testing.assert_close(pre + attn + mlp, post, atol=1e-5, rtol=1e-5)


def test_the_middle_of_the_block_is_where_attention_is_added(loaded: LoadedModel) -> None:
    sites = [Site(layer=1, name=name) for name in ("resid_pre", "attn_out", "resid_mid")]
    if loaded.anatomy.kind == "parallel":
        with pytest.raises(UnknownAnatomy, match=r"no site 'blocks.1.hook_resid_mid': its attention and MLP work side by side"):
            loaded.anatomy.check(sites[2])
        return
    with captured(loaded, sites) as got:
        forward(loaded.model, Batch.of(PROMPTS))
    torch.testing.assert_close(got[sites[0]] + got[sites[1]], got[sites[2]], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("site", "text"),
    [
        (Site(layer=3, name="z"), "layer 3 does not exist: 'tiny' has layers 0 to 2."),
        (Site(layer=0, name="z", head=4), "head 4 does not exist: 'tiny' has heads 0 to 3 in each layer."),
    ],
)
def test_a_site_outside_the_model_is_refused_with_its_range(llama: LoadedModel, site: Site, text: str) -> None:
    with pytest.raises(SpecError) as refused:
        llama.anatomy.check(site, model="'tiny'")
    assert str(refused.value) == text


@pytest.mark.filterwarnings("ignore")
def test_a_model_without_attention_has_layers_but_no_heads() -> None:
    config = MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, state_size=4)
    anatomy = find_anatomy(MambaForCausalLM(config).eval())
    assert anatomy.n_layers == 2
    assert not anatomy.exchangeable
    with pytest.raises(UnknownAnatomy, match=r"MambaBlock has no site 'blocks.0.attn.hook_z'"):
        anatomy.place(Site(layer=0, name="z"))


def test_a_model_without_layers_is_refused() -> None:
    model = tiny_model("llama")
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(UnknownAnatomy, match="LlamaForCausalLM has no list of layers"):
        find_anatomy(model)
