"""What stands in for an ablated component: zeros, a mean over the reference slice, or what another prompt had there."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from engine.experiments.batches import Batches
from engine.experiments.kept import Kept, Positions
from engine.experiments.prompts import Prompt
from engine.hooks.batch import Batch, forward
from engine.hooks.bind import bind
from engine.hooks.capture import captured
from engine.hooks.change import Change
from engine.hooks.edit import Edit
from engine.hooks.replay import Variant
from engine.hooks.sites import Site
from engine.hooks.sweep import stop_if
from engine.models.loading import LoadedModel

IN_MEMORY_BYTES = 2 * 2**30
"""Reference activations up to this size are kept in memory, larger ones in a temporary file."""


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
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    sites: Sequence[Site],
    *,
    batches: Batches,
    keep: bool,
    cancelled: Callable[[], bool],
    in_memory_bytes: int = IN_MEMORY_BYTES,
) -> Reference:
    """The reference slice's activations at whole sites (no heads); the prompts' own only if `keep`.

    Raises:
        ModelError: memory ran out for a single prompt.
        StoreError: the activations fit neither memory nor disk.
        RunCancelled: `cancelled` said so.
    """
    lengths = [len(prompt.tokens) for prompt in prompts]
    sums = dict[int, Tensor]()
    kept = Kept(lengths, layers=len(sites), in_memory_bytes=in_memory_bytes)

    def add(some: slice) -> None:
        stop_if(cancelled)
        for layer, rows in _activations(loaded, prompts[some], sites).items():
            total = torch.stack([row.double().sum(0) for row in rows]).sum(0)
            sums[layer] = sums.get(layer, torch.zeros_like(total)) + total
            if keep:
                kept.put(layer, some, rows)

    batches.go_through(prompts, add)
    means = {layer: (total / sum(lengths)).float() for layer, total in sums.items()}
    return Reference(means=means, prompts=kept.prompts, tokens=sum(lengths))


def _activations(loaded: LoadedModel, prompts: Sequence[Prompt], sites: Sequence[Site]) -> dict[int, Positions]:
    """Layer -> activations of each prompt, on the CPU because double precision is not everywhere."""
    batch = Batch.of([prompt.tokens for prompt in prompts], device=loaded.device)
    with captured(loaded, sites) as got:
        forward(loaded.model, batch, torch.zeros(1, dtype=torch.long, device=loaded.device))
    lengths = [len(prompt.tokens) for prompt in prompts]
    return {site.depth: [row[:length].cpu() for row, length in zip(got[site], lengths, strict=True)] for site in sites}


@dataclass(frozen=True, slots=True, kw_only=True)
class StandIns(Sequence[Variant]):
    """The variants of one batch: each site once per seed, seeds running fastest. A variant's tensor is made when it is asked for."""

    loaded: LoadedModel
    mode: Literal["zero", "mean", "resample"]
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
        return bind([edit_of(site, self.mode, seed)], self.loaded, reference=self)

    @property
    def outlines(self) -> Sequence[Variant]:
        """The variants with zeros in the place of their tensors."""
        return [(Change(site=site, op="zero"),) for site in self.sites for _ in self.seeds]

    def mean(self, site: Site) -> Tensor:
        """[width]: what stands in for a site in mode 'mean'."""
        return self._known.means[site.depth][self._columns(site)].to(self.loaded.device, self.loaded.model.dtype)

    def drawn(self, site: Site, seed: int) -> Tensor:
        """[batch, pos, width]: for each prompt another one's activations, position by position, its last one repeated at the end."""
        pool, columns = self._known.prompts[site.depth], self._columns(site)
        width = max(len(prompt.tokens) for prompt in self.prompts)
        rows = [pool[draw(self.question, prompt.id, site, seed, len(pool))][:, columns] for prompt in self.prompts]
        return torch.stack([row[torch.arange(width).clamp(max=len(row) - 1)] for row in rows]).to(self.loaded.device)

    @property
    def _known(self) -> Reference:
        assert self.reference is not None, f"mode '{self.mode}' comes with a reference slice"
        return self.reference

    def _columns(self, site: Site) -> slice:
        return slice(None) if site.head is None else self.loaded.anatomy.head_slice(site.head)


def edit_of(site: Site, mode: Literal["zero", "mean", "resample"], seed: int) -> Edit:
    """How a site is taken away, as data."""
    return Edit(site=site, op=mode, seed=seed if mode == "resample" else 0)


def draw(question: str, prompt_id: str, site: Site, seed: int, n: int) -> int:
    """Which of `n` reference prompts stands in: the same on every machine and for every cut of the work into shards.

    The prompt itself may be drawn if it is in the slice; its effect is then 0.
    """
    digest = hashlib.sha256(f"{question}|{prompt_id}|{site.layer}|{site.head}|{seed}".encode()).digest()
    return int(np.random.default_rng(int.from_bytes(digest[:16], "big")).integers(n))
