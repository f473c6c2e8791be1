"""The tensors within attention: that they are the model's own, and that changing them changes what it does."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb

from engine.errors import SpecError, UnknownAnatomy
from engine.hooks.batch import Batch, forward
from engine.hooks.bind import bind
from engine.hooks.capture import captured
from engine.hooks.change import Change
from engine.hooks.edit import Edit
from engine.hooks.positions import Index, Slice
from engine.hooks.sites import Site, SiteName
from engine.hooks.wiring import edited
from engine.models.loading import LoadedModel
from tests.plugin_engine import as_loaded, hook_count, tiny_model

PROMPTS = [[5, 9, 2, 7, 11, 3, 8, 4, 12, 6], [6, 1, 13], [2, 2, 40, 41, 7]]
INSIDE: tuple[SiteName, ...] = ("q", "k", "v", "scores", "pattern")
KERNEL = "_attn_implementation_internal"


@pytest.fixture(params=["alone", "left", "right"])
def batch(request: pytest.FixtureRequest) -> Batch:
    side: Literal["left", "right"] = "left" if request.param == "left" else "right"
    return Batch.of(PROMPTS[:1] if request.param == "alone" else PROMPTS, side=side)


def _site(name: SiteName, head: int | None = None, layer: int = 1) -> Site:
    return Site(layer=layer, name=name, head=head)


def _real(batch: Batch) -> Tensor:
    return batch.attention_mask.bool()


def _eager(loaded: LoadedModel) -> Any:
    model = copy.deepcopy(loaded.model)
    model.set_attn_implementation("eager")
    return model


def test_the_pattern_is_the_one_that_transformers_shows(loaded: LoadedModel, batch: Batch) -> None:
    with captured(loaded, [_site("pattern", layer=layer) for layer in range(3)]) as got:
        forward(loaded.model, batch)
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
    with torch.no_grad():
        expected = _eager(loaded)(**given, output_attentions=True).attentions
    for site, pattern in got.items():
        rows = pattern.transpose(1, 2)[_real(batch)]
        torch.testing.assert_close(rows, expected[site.depth].transpose(1, 2)[_real(batch)], atol=2e-6, rtol=0)
        torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]), atol=1e-6, rtol=0)


def test_the_pattern_is_the_softmax_of_the_scores(loaded: LoadedModel, batch: Batch) -> None:
    with captured(loaded, [_site("scores"), _site("pattern"), _site("pattern", 2)]) as got:
        forward(loaded.model, batch)
    rows = got[_site("scores")].softmax(-1).transpose(1, 2)[_real(batch)]
    torch.testing.assert_close(rows, got[_site("pattern")].transpose(1, 2)[_real(batch)], atol=1e-6, rtol=0)
    assert torch.equal(got[_site("pattern", 2)], got[_site("pattern")][:, 2])


@pytest.mark.parametrize("names", [("q", "k", "v"), ("q", "scores", "pattern")])
def test_looking_at_attention_changes_nothing(loaded: LoadedModel, batch: Batch, names: tuple[SiteName, ...]) -> None:
    plain = forward(loaded.model, batch)
    with captured(loaded, [_site(name, layer=layer) for layer in (0, 2) for name in names]):
        logits = forward(loaded.model, batch)
    off = 2e-6 * max(1.0, float(plain.abs().max())) if set(names) & {"scores", "pattern"} else 0
    torch.testing.assert_close(logits[_real(batch)], plain[_real(batch)], atol=off, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gemma3", "phi"])
def test_looking_at_an_eager_model_changes_no_bit(family: str) -> None:
    model, batch = tiny_model(family), Batch.of(PROMPTS, side="left")
    model.set_attn_implementation("eager")
    loaded, plain = as_loaded(model), forward(model, batch)
    with captured(loaded, [_site(name) for name in INSIDE]):
        assert torch.equal(forward(model, batch), plain)


def test_queries_keys_and_values_of_llama_are_what_its_weights_make(llama: LoadedModel, batch: Batch) -> None:
    with captured(llama, [_site("resid_pre"), *(_site(name) for name in ("q", "k", "v"))]) as got:
        forward(llama.model, batch)
    layer, rotary = llama.model.model.layers[1], llama.model.model.rotary_emb
    x = layer.input_layernorm(got[_site("resid_pre")])
    q, k, v = (getattr(layer.self_attn, f"{name}_proj")(x).unflatten(-1, (-1, 8)) for name in ("q", "k", "v"))
    q, k = apply_rotary_pos_emb(q, k, *rotary(x, batch.position_ids), unsqueeze_dim=2)
    for name, expected in (("q", q), ("k", k), ("v", v)):
        assert got[_site(name)].shape == (batch.size, batch.width, 4 if name == "q" else 2, 8)
        torch.testing.assert_close(got[_site(name)], expected, atol=1e-5, rtol=0)
    pattern = _pattern_by_hand(q, k, batch)
    with captured(llama, [_site("pattern")]) as seen:
        forward(llama.model, batch)
    torch.testing.assert_close(
        seen[_site("pattern")].transpose(1, 2)[_real(batch)], pattern.transpose(1, 2)[_real(batch)], atol=1e-5, rtol=0
    )


def _pattern_by_hand(q: Tensor, k: Tensor, batch: Batch) -> Tensor:
    """Attention of queries to the keys of their group, to earlier tokens only."""
    scores = torch.stack([torch.einsum("bqd,bkd->bqk", q[:, :, head], k[:, :, head // 2]) for head in range(4)], 1) / 8**0.5
    hidden = torch.ones(batch.width, batch.width).triu(1).bool() | ~_real(batch)[:, None, None, :]
    return scores.masked_fill(hidden, -1e9).softmax(-1)


def test_queries_keys_and_values_of_gpt2_are_what_its_weights_make(batch: Batch) -> None:
    loaded = as_loaded(tiny_model("gpt2"))
    with captured(loaded, [_site("resid_pre"), *(_site(name) for name in ("q", "k", "v"))]) as got:
        forward(loaded.model, batch)
    block = loaded.model.transformer.h[1]
    made = block.ln_1(got[_site("resid_pre")]) @ block.attn.c_attn.weight + block.attn.c_attn.bias
    for name, expected in zip(("q", "k", "v"), made.split(32, -1), strict=True):
        torch.testing.assert_close(got[_site(name)], expected.unflatten(-1, (4, 8)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["k", "v"])
def test_a_group_of_keys_or_values_changes_exactly_its_query_heads(loaded: LoadedModel, name: Literal["k", "v"]) -> None:
    batch, anatomy = Batch.of(PROMPTS, side="left"), loaded.anatomy
    share = anatomy.n_heads // anatomy.n_kv_heads
    assert anatomy.n_kv_heads == (getattr(loaded.model.config, "num_key_value_heads", None) or 4)
    with captured(loaded, [_site("z")]) as got:
        forward(loaded.model, batch)
        clean = got[_site("z")]
        for group in range(anatomy.n_kv_heads):
            with edited(loaded, bind([Edit(site=_site(name, group), op="scale", strength=-2.0)], loaded)):
                forward(loaded.model, batch)
            moved = (got[_site("z")] - clean)[_real(batch)].unflatten(-1, (4, -1)).abs().amax((0, 2)) > 1e-4
            assert moved.tolist() == [head // share == group for head in range(4)]


def test_zeroing_a_value_group_is_zeroing_z_of_its_heads(loaded: LoadedModel, batch: Batch) -> None:
    share = loaded.anatomy.n_heads // loaded.anatomy.n_kv_heads
    with edited(loaded, bind([Edit(site=_site("v", 1), op="zero")], loaded)):
        by_value = forward(loaded.model, batch)
    with edited(loaded, bind([Edit(site=_site("z", head), op="zero") for head in range(share, 2 * share)], loaded)):
        by_z = forward(loaded.model, batch)
    torch.testing.assert_close(by_value[_real(batch)], by_z[_real(batch)], atol=1e-5, rtol=0)


KNOCKED: dict[str, Any] = {"positions": Index(index=(-1,)), "keys": Index(index=(1,))}


def test_cutting_a_token_off_by_scores_is_softmax_without_it(loaded: LoadedModel, batch: Batch) -> None:
    site = _site("pattern", 2)
    with captured(loaded, [site]) as got:
        forward(loaded.model, batch)
        clean = got[site]
        with edited(loaded, bind([Edit(site=_site("scores", 2), op="set", value=-1e4, **KNOCKED)], loaded)):
            forward(loaded.model, batch)
    for row in range(batch.size):
        columns = _real(batch)[row].nonzero()[:, 0]
        expected = clean[row].clone()
        expected[columns[-1], columns[1]] = 0
        expected[columns[-1]] /= expected[columns[-1]].sum()
        torch.testing.assert_close(got[site][row][columns], expected[columns], atol=2e-6, rtol=0)


def test_cutting_a_token_off_by_the_pattern_takes_its_value_out_of_z(loaded: LoadedModel, batch: Batch) -> None:
    share, sites = loaded.anatomy.n_heads // loaded.anatomy.n_kv_heads, [_site("z", 2), _site("pattern", 2), _site("v")]
    with captured(loaded, sites) as got:
        forward(loaded.model, batch)
        z, pattern, values = (got[site] for site in sites)
        with edited(loaded, bind([Edit(site=_site("pattern", 2), op="zero", **KNOCKED)], loaded)):
            logits = forward(loaded.model, batch)
    for row in range(batch.size):
        columns = _real(batch)[row].nonzero()[:, 0]
        last, key = columns[-1], columns[1]
        expected = z[row].clone()
        expected[last] -= pattern[row, last, key] * values[row, key, 2 // share]
        torch.testing.assert_close(got[_site("z", 2)][row][columns], expected[columns], atol=1e-5, rtol=0)
    assert not torch.allclose(logits, forward(loaded.model, batch))


EVERYWHERE = [
    Edit(site=_site("scores"), op="set", value=3.0),
    Edit(site=_site("scores", 1), op="scale", strength=-1.0),
    Edit(site=_site("scores"), op="scale", strength=1e6),
    Edit(site=_site("pattern"), op="add", value=0.1),
]


@pytest.mark.parametrize("edit", EVERYWHERE)
def test_no_token_sees_what_follows_it_or_padding_whatever_is_done_to_attention(loaded: LoadedModel, edit: Edit) -> None:
    batch = Batch.of(PROMPTS, side="left")
    with edited(loaded, bind([edit], loaded)), captured(loaded, [_site("pattern")]) as got:
        together = forward(loaded.model, batch)
        pattern = got[_site("pattern")]
        alone = [forward(loaded.model, Batch.of([prompt])) for prompt in PROMPTS]
        shorter = forward(loaded.model, Batch.of([PROMPTS[0][:8]]))
    hidden = torch.ones(batch.width, batch.width).triu(1).bool() | ~_real(batch)[:, None, :]
    assert not pattern.movedim(1, -1)[hidden & _real(batch)[:, :, None]].any()
    assert together.isfinite().all()
    for row, logits in enumerate(alone):
        torch.testing.assert_close(together[row, -len(PROMPTS[row]) :], logits[0], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(shorter[0], alone[0][0, :8], atol=2e-5, rtol=1e-5)


def _kernels(model: nn.Module) -> list[str]:
    return [getattr(module.config, KERNEL) for module in model.modules() if hasattr(getattr(module, "config", None), KERNEL)]


def test_the_model_has_its_own_kernel_again_whatever_happened(loaded: LoadedModel) -> None:
    before, batch = _kernels(loaded.model), Batch.of(PROMPTS)
    plain = forward(loaded.model, batch)
    zero = bind([Edit(site=_site("pattern", 0), op="zero")], loaded)
    with pytest.raises(KeyError), edited(loaded, zero), captured(loaded, [_site("q")]):
        _fail(_kernels(loaded.model) != before)
    assert _kernels(loaded.model) == before
    wrong = Change(site=_site("q", 0), op="set", value=torch.zeros(5))
    with pytest.raises(SpecError, match="does not fit"), edited(loaded, [*zero, wrong]):
        forward(loaded.model, batch)
    assert _kernels(loaded.model) == before
    assert torch.equal(forward(loaded.model, batch), plain)
    assert hook_count(loaded.model) == 0


def _fail(as_expected: bool) -> None:
    assert as_expected
    raise KeyError("in the middle")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2), (0, 2, 1), (2, 0, 1)])
def test_contexts_may_be_left_in_any_order(llama: LoadedModel, order: tuple[int, ...]) -> None:
    batch, before = Batch.of(PROMPTS), _kernels(llama.model)
    plain = forward(llama.model, batch)
    edits = [Edit(site=_site(name, 0, layer), op="zero") for name, layer in (("pattern", 1), ("q", 1), ("scores", 0))]
    expected = {}
    for left in ([0, 1, 2], *([at] for at in range(3)), *([a, b] for a in range(3) for b in range(a))):
        with edited(llama, bind([edits[at] for at in left], llama)):
            expected[frozenset(left)] = forward(llama.model, batch)
    stacks = [ExitStack() for _ in edits]
    for stack, edit in zip(stacks, edits, strict=True):
        stack.enter_context(edited(llama, bind([edit], llama)))
    left = {0, 1, 2}
    for at in order:
        torch.testing.assert_close(forward(llama.model, batch), expected[frozenset(left)], atol=1e-6, rtol=0)
        stacks[at].close()
        left.remove(at)
    assert torch.equal(forward(llama.model, batch), plain)
    assert _kernels(llama.model) == before
    assert not llama.wiring.wires


@pytest.fixture
def fresh() -> Iterator[LoadedModel]:
    """A model that nobody has looked at yet."""
    made = as_loaded(tiny_model("llama"))
    yield made
    assert hook_count(made.model) == 0
    assert not made.wiring.wires


def test_finding_out_whether_attention_can_be_reached_disturbs_nobody(fresh: LoadedModel) -> None:
    batch, site = Batch.of(PROMPTS), _site("resid_post")
    add = [Change(site=site, op="add", value=torch.ones(3, 10, 32)), Change(site=site, op="scale", strength=torch.tensor([1.0, 2.0, 3.0]))]
    heard = list[int]()
    handle = fresh.model.register_forward_hook(lambda *_: heard.append(1))
    with edited(fresh, add), captured(fresh, [site]) as got:
        forward(fresh.model, batch)
        before = got[site]
        with captured(fresh, [_site("pattern")]) as inner, captured(fresh, [_site("v")]):
            assert got[site] is before
            forward(fresh.model, batch)
    handle.remove()
    assert len(heard) == 2
    torch.testing.assert_close(got[site], before, atol=1e-4, rtol=0)
    assert set(inner) == {_site("pattern")}


class _OwnAttention(LlamaAttention):
    """Attention that knows nothing of transformers' interface."""

    def forward(self, hidden_states: Tensor, position_embeddings: Any = None, attention_mask: Any = None, **_: Any) -> Any:
        q, k, v = (
            projection(hidden_states).unflatten(-1, (-1, 8)).transpose(1, 2) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(z.transpose(1, 2).flatten(2)), None


def _with_own_attention(layers: range) -> LoadedModel:
    model = tiny_model("llama")
    for layer in layers:
        model.model.layers[layer].self_attn.__class__ = _OwnAttention
    return as_loaded(model)


@pytest.mark.parametrize(("layers", "number"), [(range(3), 3), (range(1, 2), 1)])
def test_attention_of_a_model_s_own_is_refused_and_everything_else_works(layers: range, number: int) -> None:
    loaded, batch = _with_own_attention(layers), Batch.of(PROMPTS[:1])
    plain = forward(loaded.model, batch)
    reason = f"cannot be reached: {number} of its 3 attention layers do not go through transformers' attention interface. Choose 'z' or"
    for name in INSIDE:
        with pytest.raises(UnknownAnatomy, match=reason), captured(loaded, [_site("z"), _site(name)]):
            pass
        with pytest.raises(UnknownAnatomy, match=reason), edited(loaded, bind([Edit(site=_site(name), op="zero")], loaded)):
            pass
        assert hook_count(loaded.model) == 0
        assert not loaded.wiring.wires
    for name in ("resid_mid", "attn_out", "z", "head_out", "mlp_out", "neurons"):
        with edited(loaded, bind([Edit(site=_site(name), op="zero")], loaded)):
            assert not torch.allclose(forward(loaded.model, batch), plain)


def _gpt_oss() -> LoadedModel:
    tokens = {"vocab_size": 340, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = GptOssConfig(**tokens, **sizes, head_dim=8, num_local_experts=2, num_experts_per_tok=1, initializer_range=0.25)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return as_loaded(GptOssForCausalLM(config).eval().requires_grad_(False), "gpt_oss")


def test_attention_with_sinks_lends_its_queries_but_not_its_pattern() -> None:
    loaded, batch = _gpt_oss(), Batch.of(PROMPTS, side="left")
    plain, before = forward(loaded.model, batch), _kernels(loaded.model)
    for name in ("scores", "pattern"):
        with pytest.raises(UnknownAnatomy, match=r"to its attention scores.*Choose sites q, k, v or z"), captured(loaded, [_site(name)]):
            pass
        assert _kernels(loaded.model) == before
    with captured(loaded, [_site(name) for name in ("q", "k", "v")]):
        assert torch.equal(forward(loaded.model, batch), plain)
    with edited(loaded, bind([Edit(site=_site("v", 0), op="zero", positions=Slice(start=1))], loaded)):
        assert not torch.allclose(forward(loaded.model, batch), plain)
    assert torch.equal(forward(loaded.model, batch), plain)
