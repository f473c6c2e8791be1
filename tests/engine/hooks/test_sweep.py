"""The replay against its naive twin."""

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from engine.errors import RunCancelled, SpecError
from engine.hooks.batch import Batch, forward
from engine.hooks.change import Change
from engine.hooks.pace import Pace
from engine.hooks.replay import Variant
from engine.hooks.shortage import ran_out_of_memory
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
    heads = [[Change(site=Site(layer=layer, name="z", head=head), op="zero")] for layer in layers for head in range(4)]
    outputs = [[Change(site=Site(layer=layer, name=name), op="zero")] for layer in layers for name in ("attn_out", "mlp_out")]
    d_head = loaded.anatomy.d_head
    return [
        *heads,
        *outputs,
        [Change(site=Site(layer=1, name="attn_out"), op="set", value=value)],
        [Change(site=Site(layer=1, name="mlp_out"), op="add", value=torch.randn(3, 8, 32, generator=torch.Generator().manual_seed(1)))],
        [
            Change(site=Site(layer=0, name="z", head=2), op="set", value=value[:d_head]),
            Change(site=Site(layer=0, name="z", head=1), op="zero"),
        ],
        [Change(site=Site(layer=0, name="z", head=2), op="zero"), Change(site=Site(layer=2, name="mlp_out"), op="zero")],
        [Change(site=Site(layer=1, name="resid_pre"), op="add", value=value)],
        [Change(site=Site(layer=2, name="resid_post"), op="add", value=value)],
        [Change(site=Site(layer=2, name="neurons"), op="zero")],
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


def test_a_repeated_sweep_of_a_fixed_number_at_once_is_equal_to_the_bit(llama: LoadedModel) -> None:
    batch, variants = Batch.of(PROMPTS), _all_sites(llama)
    first, second = (_swept(llama, batch, variants, Sum(batch, None), 4)[1] for _ in range(2))
    assert torch.equal(first, second)


def test_the_clean_run_comes_first_and_every_variant_once(llama: LoadedModel) -> None:
    batch, variants = Batch.of(PROMPTS), _all_sites(llama)
    parts = list(sweep(llama, batch, variants, Sum(batch, None), variants_per_forward=2))
    assert parts[0].variants == ()
    assert sorted(index for part in parts for index in part.variants) == list(range(len(variants)))


def test_the_variants_that_are_left_are_measured_as_if_all_were(llama: LoadedModel) -> None:
    batch, variants = Batch.of(PROMPTS), _all_sites(llama)
    whole, wanted = _swept(llama, batch, variants, Sum(batch, None), 1)[1], [0, 7, 12, 20, 23]
    parts = list(sweep(llama, batch, variants, Sum(batch, None), wanted=wanted, variants_per_forward=1))
    assert sorted(index for part in parts for index in part.variants) == wanted
    assert all(torch.equal(part.values[0], whole[part.variants[0]]) for part in parts[1:])


def test_a_pace_learns_and_is_kept_from_batch_to_batch(llama: LoadedModel) -> None:
    batch, readout, pace = Batch.of(PROMPTS), Sum(Batch.of(PROMPTS), None), Pace()
    heads = [[Change(site=Site(layer=0, name="z", head=head % 4), op="zero")] for head in range(64)]
    at_once = [[len(part.variants) for part in sweep(llama, batch, heads, readout, pace=pace)] for _ in range(4)]
    assert at_once[:3] == [[0, 64], [0, 64], [0, 32, 32]]
    assert set(pace.costs()) >= {64, 32}
    assert min(pace.costs().values()) == 1


@dataclass
class Hungry(Sum):
    """Needs more memory than there is when more than so many rows come at once. The allocator really fails."""

    rows: int = 0

    def __call__(self, logits: Tensor) -> Tensor:
        if logits.shape[0] > self.rows:
            torch.empty(2**50)
        return Sum.__call__(self, logits)


@pytest.mark.parametrize("at_once", [None, 8])
def test_when_memory_runs_out_fewer_variants_share_a_forward_pass(llama: LoadedModel, at_once: int | None) -> None:
    batch, pace = Batch.of(PROMPTS), Pace(at_once)
    variants = _all_sites(llama) * 2
    parts = list(sweep(llama, batch, variants, Hungry(batch, None, rows=3 * batch.size), pace=pace))
    assert max(len(part.variants) for part in parts) == 2
    assert pace.shortages >= 1
    assert sorted(index for part in parts for index in part.variants) == list(range(len(variants)))
    expected = naive_sweep(llama, batch, variants, Sum(batch, None))
    for part in parts:
        torch.testing.assert_close(part.values, expected[list(part.variants)], atol=5e-6, rtol=0)
    assert hook_count(llama.model) == 0


def test_memory_that_does_not_suffice_for_one_variant_is_told(llama: LoadedModel) -> None:
    batch = Batch.of(PROMPTS)
    with pytest.raises(RuntimeError) as failed:
        list(sweep(llama, batch, _all_sites(llama), Hungry(batch, None, rows=0)))
    assert ran_out_of_memory(failed.value)
    assert hook_count(llama.model) == 0


@pytest.mark.parametrize(
    ("error", "is_shortage"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_a_shortage_of_memory_is_recognised(error: Exception, is_shortage: bool) -> None:
    assert ran_out_of_memory(error) == is_shortage


UNDER_A_LIMIT = """
import resource, torch
from pathlib import Path
from engine.hooks.batch import Batch
from engine.hooks.change import Change
from engine.hooks.pace import Pace
from engine.hooks.sites import Site
from engine.hooks.sweep import sweep
from tests.plugin_engine import as_loaded, tiny_model

torch.set_num_threads(1)

class Wide:
    positions = None

    def __call__(self, logits):
        torch.empty(logits.shape[0], 2**24)  # 64 MiB a row
        return logits.mean((1, 2))

loaded, batch, pace = as_loaded(tiny_model("llama")), Batch.of([[5, 9, 2]]), Pace(32)
heads = [[Change(site=Site(layer=0, name="z", head=at % 4), op="zero")] for at in range(32)]
free = {part.variants: part.values for part in sweep(loaded, batch, heads, Wide(), variants_per_forward=1)}
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, now + 2**30))
parts = [part for part in sweep(loaded, batch, heads, Wide(), pace=pace) if part.variants]
for part in parts:
    expected = torch.stack([free[index,][0] for index in part.variants])
    torch.testing.assert_close(part.values, expected, atol=5e-6, rtol=0)
print(sum(len(part.variants) for part in parts), max(len(part.variants) for part in parts), pace.shortages)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits of this kind are Linux's")
def test_a_process_that_may_not_have_more_memory_goes_on_with_less() -> None:
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", UNDER_A_LIMIT], cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    measured, at_once, shortages = map(int, done.stdout.split())
    assert measured == 32
    assert 4 <= at_once <= 15
    assert shortages >= 1


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
    wrong = [Change(site=Site(layer=layer, name="z"), op="set", value=torch.zeros(7))]
    with pytest.raises(SpecError, match="does not fit"):
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
