"""What stands in for an ablated component: zeros, a mean over the reference slice, or what another prompt had there."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.experiments.prompts import Prompt
from engine.hooks.batch import Batch, forward
from engine.hooks.capture import captured
from engine.hooks.edit import Edit
from engine.hooks.replay import Variant
from engine.hooks.sites import Site
from engine.hooks.sweep import stop_if
from engine.models.loading import LoadedModel

Positions = list[Tensor]
"""One tensor [pos, width] per reference prompt, padding cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Activations of the reference slice.

    Attributes:
        means: layer -> mean over all positions of all prompts, [width]; for z all heads beside each other.
        prompts: layer -> activations of each prompt; empty unless they are drawn from.
        tokens: positions that the means are over.
    """

    means: dict[int, Tensor]
    prompts: dict[int, Positions]
    tokens: int


def measure_reference(
    loaded: LoadedModel, prompts: Sequence[Prompt], sites: Sequence[Site], *, batch_size: int, keep: bool, cancelled: Callable[[], bool]
) -> Reference:
    """The reference slice's activations at whole sites (no heads); the prompts' own only if `keep`."""
    sums = dict[int, Tensor]()
    kept: dict[int, Positions] = {site.layer: [] for site in sites}
    for some in _in_batches(prompts, batch_size):
        stop_if(cancelled)
        for layer, rows in _activations(loaded, some, sites).items():
            total = torch.stack([row.double().sum(0) for row in rows]).sum(0)
            sums[layer] = sums.get(layer, torch.zeros_like(total)) + total
            if keep:
                kept[layer] += rows
    tokens = sum(len(prompt.tokens) for prompt in prompts)
    means = {layer: (total / tokens).float() for layer, total in sums.items()}
    return Reference(means=means, prompts=kept if keep else {}, tokens=tokens)


def _in_batches(prompts: Sequence[Prompt], size: int) -> Iterator[Sequence[Prompt]]:
    for start in range(0, len(prompts), size):
        yield prompts[start : start + size]


def _activations(loaded: LoadedModel, prompts: Sequence[Prompt], sites: Sequence[Site]) -> dict[int, Positions]:
    """Layer -> activations of each prompt, on the CPU because double precision is not everywhere."""
    batch = Batch.of([prompt.tokens for prompt in prompts], device=loaded.device)
    with captured(loaded, sites) as got:
        forward(loaded.model, batch, torch.zeros(1, dtype=torch.long, device=loaded.device))
    lengths = [len(prompt.tokens) for prompt in prompts]
    return {site.layer: [row[:length].cpu() for row, length in zip(got[site], lengths, strict=True)] for site in sites}


@dataclass(frozen=True, slots=True, kw_only=True)
class StandIns(Sequence[Variant]):
    """The variants of one batch: each site once per seed, seeds running fastest. A variant's tensor is made when it is asked for."""

    loaded: LoadedModel
    mode: str
    sites: Sequence[Site]
    seeds: Sequence[int]
    prompts: Sequence[Prompt]
    reference: Reference | None
    question: str

    def __len__(self) -> int:
        return len(self.sites) * len(self.seeds)

    def __getitem__(self, index: int) -> Variant:  # type: ignore[override]
        """One edit at one site."""
        site, seed = self.sites[index // len(self.seeds)], self.seeds[index % len(self.seeds)]
        return (Edit(site=site, op="zero"),) if self.mode == "zero" else (Edit(site=site, op="set", value=self._value(site, seed)),)

    def _value(self, site: Site, seed: int) -> Tensor:
        assert self.reference is not None, f"mode '{self.mode}' comes with a reference slice"
        columns = slice(None) if site.head is None else self.loaded.anatomy.head_slice(site.head)
        if self.mode == "mean":
            return self.reference.means[site.layer][columns].to(self.loaded.device, self.loaded.model.dtype)
        return self._drawn([row[:, columns] for row in self.reference.prompts[site.layer]], site, seed).to(self.loaded.device)

    def _drawn(self, pool: Positions, site: Site, seed: int) -> Tensor:
        """[batch, pos, width]: for each prompt another one's activations, position by position, its last one repeated at the end."""
        width = max(len(prompt.tokens) for prompt in self.prompts)
        rows = [pool[draw(self.question, prompt.id, site, seed, len(pool))] for prompt in self.prompts]
        return torch.stack([row[torch.arange(width).clamp(max=len(row) - 1)] for row in rows])


def draw(question: str, prompt_id: str, site: Site, seed: int, n: int) -> int:
    """Which of `n` reference prompts stands in: the same on every machine and for every cut of the work into shards.

    The prompt itself may be drawn if it is in the slice; its effect is then 0.
    """
    digest = hashlib.sha256(f"{question}|{prompt_id}|{site.layer}|{site.head}|{seed}".encode()).digest()
    return int(np.random.default_rng(int.from_bytes(digest[:16], "big")).integers(n))
