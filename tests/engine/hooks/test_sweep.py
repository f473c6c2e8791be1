"""The replay against its naive twin."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import Tensor

from engine.errors import RunCancelled
from engine.hooks.batch import Batch, forward
from engine.hooks.edit import Edit
from engine.hooks.replay import Variant
from engine.hooks.sites import Site
from engine.hooks.sweep import SweepPart, naive_sweep, sweep
from engine.models.loading import LoadedModel
from tests.plugin_engine import hook_count

PROMPTS = [[5, 9, 2, 7, 11, 3, 8, 4], [6, 1, 13, 30], [2, 2, 40, 41, 7]]


@dataclass
class Sum:
    """A made-up metric: a fixed mixture of the log-probabilities at some positions, at tokens only."""

    batch: Batch
    positions: Tensor | None

    def __call__(self, logits: Tensor) -> Tensor:
        mask = self.batch.attention_mask if self.positions is None else self.batch.attention_mask[:, self.positions]
        weights = torch.linspace(-1, 1, logits.shape[-1])
        each = (logits.log_softmax(-1) * weights).sum(-1) * mask.repeat(logits.shape[0] // mask.shape[0], 1)
        return each.sum(-1) / logits.shape[-1]


READ: dict[str, Callable[[Batch], Tensor | None]] = {
    "everywhere": lambda _: None,
    "at two positions": lambda batch: torch.tensor([2, batch.width - 1]),
}


def _all_sites(loaded: LoadedModel) -> list[Variant]:
    """Every head and every output set to zero, plus changes that no shortcut covers."""
    value = torch.linspace(-1, 1, 32)
    layers = range(loaded.anatomy.n_layers)
    heads = [[Edit(site=Site(layer=layer, name="z", head=head), op="zero")] for layer in layers for head in range(4)]
    outputs = [[Edit(site=Site(layer=layer, name=name), op="zero")] for layer in layers for name in ("attn_out", "mlp_out")]
    d_head = loaded.anatomy.d_head
    return [
        *heads,
        *outputs,
        [Edit(site=Site(layer=1, name="attn_out"), op="set", value=value)],
        [Edit(site=Site(layer=1, name="mlp_out"), op="add", value=torch.randn(3, 8, 32, generator=torch.Generator().manual_seed(1)))],
        [Edit(site=Site(layer=0, name="z", head=2), op="set", value=value[:d_head]), Edit(site=Site(layer=0, name="z", head=1), op="zero")],
        [Edit(site=Site(layer=0, name="z", head=2), op="zero"), Edit(site=Site(layer=2, name="mlp_out"), op="zero")],
        [Edit(site=Site(layer=1, name="resid_pre"), op="add", value=value)],
        [Edit(site=Site(layer=2, name="resid_post"), op="add", value=value)],
        [Edit(site=Site(layer=2, name="neurons"), op="zero")],
    ]


def _swept(loaded: LoadedModel, batch: Batch, variants: list[Variant], readout: Sum, at_once: int | None) -> tuple[Tensor, Tensor]:
    values = torch.full((len(variants), batch.size), torch.nan)
    for part in sweep(loaded, batch, variants, readout, variants_per_forward=at_once):
        clean = part.clean
        values[list(part.variants)] = part.values
    return clean, values


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("read", READ)
def test_replay_is_the_naive_loop(loaded: LoadedModel, read: str, side: Literal["left", "right"]) -> None:
    batch, variants = Batch.of(PROMPTS, side=side), _all_sites(loaded)
    readout = Sum(batch, READ[read](batch))
    clean, values = _swept(loaded, batch, variants, readout, at_once=3)
    assert torch.equal(clean, readout(forward(loaded.model, batch, readout.positions)))
    torch.testing.assert_close(values, naive_sweep(loaded, batch, variants, readout), atol=5e-6, rtol=0)
    assert (values - clean).abs().max() > 1e-2
    assert hook_count(loaded.model) == 0


@pytest.mark.parametrize("at_once", [1, 5, None])
def test_the_number_of_variants_per_forward_does_not_matter(phi: LoadedModel, at_once: int | None) -> None:
    batch, variants = Batch.of(PROMPTS), _all_sites(phi)
    readout = Sum(batch, None)
    values = _swept(phi, batch, variants, readout, at_once)[1]
    torch.testing.assert_close(values, naive_sweep(phi, batch, variants, readout), atol=5e-6, rtol=0)


def test_a_repeated_sweep_is_equal_to_the_bit(llama: LoadedModel) -> None:
    batch, variants = Batch.of(PROMPTS), _all_sites(llama)
    first, second = (_swept(llama, batch, variants, Sum(batch, None), None)[1] for _ in range(2))
    assert torch.equal(first, second)


def test_the_clean_run_comes_first_and_every_variant_once(llama: LoadedModel) -> None:
    batch, variants = Batch.of(PROMPTS), _all_sites(llama)
    parts = list(sweep(llama, batch, variants, Sum(batch, None), variants_per_forward=2))
    assert parts[0].variants == ()
    assert sorted(index for part in parts for index in part.variants) == list(range(len(variants)))


def test_a_cancelled_sweep_stops_and_leaves_nothing(llama: LoadedModel) -> None:
    done: list[SweepPart] = []
    parts = sweep(llama, Batch.of(PROMPTS), _all_sites(llama), Sum(Batch.of(PROMPTS), None), cancelled=lambda: len(done) > 3)
    with pytest.raises(RunCancelled):
        done.extend(parts)
    assert len(done) == 4
    assert hook_count(llama.model) == 0


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("read", READ)
def test_an_error_inside_a_replay_leaves_nothing(llama: LoadedModel, layer: int, read: str) -> None:
    batch = Batch.of(PROMPTS)
    readout = Sum(batch, READ[read](batch))
    wrong = [Edit(site=Site(layer=layer, name="z"), op="set", value=torch.zeros(7))]
    with pytest.raises(RuntimeError):
        list(sweep(llama, batch, [wrong], readout))
    assert hook_count(llama.model) == 0


def test_two_sweeps_of_one_model_at_once_do_not_mix(llama: LoadedModel) -> None:
    batch, variants = Batch.of(PROMPTS), _all_sites(llama)
    expected, got = _swept(llama, batch, variants, Sum(batch, None), 4)[1], list[Tensor]()
    threads = [threading.Thread(target=lambda: got.append(_swept(llama, batch, variants, Sum(batch, None), 4)[1])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(values, expected) for values in got)
    assert len(got) == 3
