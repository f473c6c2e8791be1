"""What other prompts have at a site: their mean, or one of them drawn by a seed, to stand in for the prompts at hand."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from engine.errors import SpecError
from engine.hooks.batch import Batch, forward
from engine.hooks.capture import captured
from engine.hooks.edit import Edit
from engine.hooks.inputs import input_device
from engine.hooks.sites import PAIRS, PER_HEAD, Site
from engine.hooks.wiring import Addressed

BATCH = 8
"""Prompts per forward pass."""


class PromptReference:
    """Activations of reference prompts, as `engine.hooks.bind.bind` wants them.

    The mean is over all tokens of all prompts. A seed draws one prompt, the same at every site, which stands in for every row of a
    batch, token by token; its last token is repeated where a row is longer.
    """

    def __init__(self, kept: dict[Site, list[Tensor]]) -> None:
        """Takes one tensor [pos, width] per prompt for each site."""
        self._kept = kept

    @classmethod
    def measured(cls, loaded: Addressed, prompts: Sequence[Sequence[int]], sites: Sequence[Site]) -> "PromptReference":
        """The reference prompts' activations at these sites, with whatever edits are in place on the model.

        Args:
            loaded: the model.
            prompts: token ids, one sequence per prompt.
            sites: where to look; with a head for what is kept head by head, such as q.

        Raises:
            SpecError: there are no prompts, or a site has no one vector per token.
            UnknownAnatomy: the model has no such site.
        """
        if not prompts:
            raise SpecError("there are no reference prompts.", next_step="Give at least one.")
        for site in sites:
            _refuse_many_vectors(site)
        kept: dict[Site, list[Tensor]] = {site: [] for site in sites}
        for some in _batches(prompts):
            batch = Batch.of(some, device=input_device(loaded.model))
            with captured(loaded, sites) as got:
                forward(loaded.model, batch)
            for site in kept:
                kept[site] += [row[: len(prompt)].cpu() for row, prompt in zip(got[site], some, strict=True)]
        return cls(kept)

    def mean(self, site: Site) -> Float[Tensor, " width"]:
        """The mean over all tokens of all prompts; summed in double precision."""
        rows = self._rows(site)
        total = torch.stack([row.double().sum(0) for row in rows]).sum(0)
        return (total / sum(len(row) for row in rows)).float()

    def drawn(self, site: Site, seed: int) -> Float[Tensor, "pos width"]:
        """What the prompt that `seed` draws has there."""
        rows = self._rows(site)
        return rows[draw(seed, len(rows))].float()

    def _rows(self, site: Site) -> list[Tensor]:
        if site not in self._kept:
            raise SpecError(f"the reference prompts were not measured at '{site.hook_name}'.", next_step="Name the site beforehand.")
        return self._kept[site]


def draw(seed: int, n: int) -> int:
    """Which of `n` prompts a seed draws; the same on every machine."""
    return int(np.random.default_rng(seed).integers(n))


def sites_of(edits: Sequence[Edit]) -> list[Site]:
    """The sites at which these edits need a reference, each once."""
    return list(dict.fromkeys(edit.site for edit in edits if edit.op in ("mean", "resample")))


def _batches(prompts: Sequence[Sequence[int]]) -> Iterator[Sequence[Sequence[int]]]:
    for start in range(0, len(prompts), BATCH):
        yield prompts[start : start + BATCH]


def _refuse_many_vectors(site: Site) -> None:
    if site.name in PAIRS:
        raise SpecError(f"site '{site.hook_name}' has pairs of positions, which prompts of other lengths do not have.")
    if site.name in PER_HEAD - {"z"} and site.head is None:
        raise SpecError(
            f"site '{site.hook_name}' has one vector per head, and a stand-in is one vector.", next_step="Make one edit for each head."
        )
