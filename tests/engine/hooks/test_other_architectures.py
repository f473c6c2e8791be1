"""Architectures that are built in ways of their own: what the engine says of them must hold, and what it cannot do it must refuse."""

from contextlib import suppress
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from engine.errors import UnknownAnatomy
from engine.hooks.batch import Batch, forward
from engine.hooks.capture import captured
from engine.hooks.change import Change
from engine.hooks.replayable import working_ways
from engine.hooks.sites import HOOK_NAMES, Site, SiteName
from engine.hooks.sweep import naive_sweep, sweep
from engine.models.loading import LoadedModel
from tests.plugin_engine import as_loaded, hook_count

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
OLD = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "initializer_range": 0.2}
GROUPED = {**SIZES, "num_key_value_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4, "initializer_range": 0.2},
    "falcon": {**SIZES, "ffn_hidden_size": 48, "initializer_range": 0.2},
    "gpt_oss": {**GROUPED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gptj": {**OLD, "n_inner": 48, "rotary_dim": 4},
    "hrm_text": {**GROUPED, "head_dim": 8},
    "llama4_text": {**GROUPED, "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 4, "attention_chunk_size": 16},
    "mixtral": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 64, "initializer_range": 0.2},
    "openai-gpt": {**OLD},
    "opt": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32},
}
PROMPTS = [[5, 9, 2, 7, 11, 3, 8, 4], [6, 1, 13, 30]]
NAMES: tuple[SiteName, ...] = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z", "neurons", "q", "pattern")


@cache
def _model(kind: str) -> LoadedModel:
    config = AutoConfig.for_model(kind, **MODELS[kind], vocab_size=100, pad_token_id=0, bos_token_id=0, eos_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return as_loaded(AutoModelForCausalLM.from_config(config).eval().requires_grad_(False), kind)


@pytest.fixture(params=MODELS)
def other(request: pytest.FixtureRequest) -> LoadedModel:
    return _model(request.param)


def _there(loaded: LoadedModel) -> list[Site]:
    """The sites of the middle layer that the engine does not refuse."""
    found = []
    for name in NAMES:
        site = Site(layer=1, name=name)
        with suppress(UnknownAnatomy), captured(loaded, [site]):
            found.append(site)
    return found


class _Logit:
    """The log-probability of a token at every position of the prompts, summed."""

    positions: Tensor | None = None

    def __init__(self, batch: Batch) -> None:
        self._mask = batch.attention_mask

    def __call__(self, logits: Tensor) -> Tensor:
        mask = self._mask.repeat(logits.shape[0] // len(self._mask), 1)
        return (logits.log_softmax(-1)[..., 7] * mask).sum(-1)


def test_looking_changes_nothing_and_everything_promised_is_seen(other: LoadedModel) -> None:
    batch, sites = Batch.of(PROMPTS), _there(other)
    assert {"resid_pre", "resid_post"} <= {site.name for site in sites}
    with captured(other, sites) as got:
        again = forward(other.model, batch)
    assert list(got) == sites or set(got) == set(sites)
    off = (again - forward(other.model, batch))[batch.attention_mask.bool()].abs().max()
    assert off <= 2e-6 * max(1.0, float(again.abs().max())), HOOK_NAMES
    assert hook_count(other.model) == 0


def test_a_sweep_is_as_exact_as_whole_forward_passes(other: LoadedModel) -> None:
    batch = Batch.of(PROMPTS)
    variants = [[Change(site=site, op="zero")] for site in _there(other)]
    slow, fast = naive_sweep(other, batch, variants, _Logit(batch)), torch.empty(len(variants), 2)
    for part in sweep(other, batch, variants, _Logit(batch)):
        fast[list(part.variants)] = part.values
    torch.testing.assert_close(fast, slow, atol=2e-5, rtol=1e-6)
    clean = _Logit(batch)(forward(other.model, batch))
    assert ((slow - clean).abs() > 1e-5).all(), "an edit without any effect was not made"


def test_what_attention_and_mlp_add_makes_up_the_layer_even_if_they_carry_the_stream_or_are_overwritten() -> None:
    for kind in ("bloom", "falcon", "mpt", "gptj"):
        loaded, batch = _model(kind), Batch.of(PROMPTS)
        pre, attn, mlp, post = (Site(layer=1, name=name) for name in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
        with captured(loaded, [pre, attn, mlp, post]) as got:
            forward(loaded.model, batch)
        torch.testing.assert_close(got[pre] + got[attn] + got[mlp], got[post], atol=1e-5, rtol=1e-5)


def test_a_layer_that_runs_several_times_is_swept_by_whole_forward_passes() -> None:
    assert working_ways(_model("hrm_text")) == frozenset()
    assert {"general", "z", "attn_out", "mlp_out"} <= working_ways(_model("gptj"))


def test_attention_sinks_are_refused_by_name_and_the_other_sites_are_not() -> None:
    loaded = _model("gpt_oss")
    with (
        pytest.raises(UnknownAnatomy, match=r"adds s_aux to its attention scores.*Choose sites q, k, v or z"),
        captured(loaded, [Site(layer=1, name="pattern")]),
    ):
        pass
    assert Site(layer=1, name="q") in _there(loaded)
