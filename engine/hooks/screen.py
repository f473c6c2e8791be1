"""A first look at many variants for the price of one forward and one backward pass. Estimates, never results."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from engine.hooks.batch import Batch, forward
from engine.hooks.call import Calls, TokenView
from engine.hooks.capture import captured
from engine.hooks.change import Change, part_changed
from engine.hooks.replay import Readout, Variant
from engine.hooks.sites import Site
from engine.hooks.wiring import Addressed


class Screened(NamedTuple):
    """Estimated metrics.

    Attributes:
        clean: the metric of the unedited model, [batch]; exact.
        values: the metric of each variant to first order, [variants, batch].
    """

    clean: Float[Tensor, " batch"]
    values: Float[Tensor, "variants batch"]


def first_order(loaded: Addressed, batch: Batch, variants: Sequence[Variant], readout: Readout) -> Screened:
    """The metric of each variant as a straight line from the clean run: clean + gradient . (edited activation - activation).

    Good for finding candidates, to be measured exactly by a sweep afterwards. Off wherever the model bends between the two: saturated
    softmaxes, norms, large edits. Edits of one variant add up, so what one does to another is not seen.

    Args:
        loaded: the model.
        batch: prompts.
        variants: lists of changes.
        readout: the metric; it must have a gradient, which `accuracy` has not.

    Raises:
        SpecError: a change names a layer or head that the model lacks.

    Source: Nanda 2023, "Attribution patching"; Syed et al. 2023 (arXiv 2310.10348), equation 1.
    """
    whole = {change.site: _whole(change.site) for variant in variants for change in variant}
    with captured(loaded, list(whole.values()), grad=True) as got:
        clean = readout(forward(loaded.model, batch, readout.positions, grad=True))
    clean.sum().backward()
    calls = Calls.at(TokenView.of(batch, special=loaded.special_ids))
    values = clean.detach().repeat(len(variants), 1)
    with torch.no_grad():
        for row, variant in zip(values, variants, strict=True):
            for change in variant:
                site = whole[change.site]
                _add_slope(row, loaded, change, got[site].detach(), got.grad(site), calls)
    return Screened(clean.detach(), values)


def _whole(site: Site) -> Site:
    return Site(layer=site.layer, name=site.name)


def _add_slope(row: Tensor, loaded: Addressed, change: Change, x: Tensor, grad: Tensor, calls: Calls) -> None:
    """Adds gradient . (edited - clean) to the metric of the rows that a change is about."""
    rows = slice(None) if change.rows is None else change.rows
    part, slope = (loaded.anatomy.part(each[rows], change.site) for each in (x, grad))
    moved = part_changed(part, change, calls) - part
    row[rows] += (slope * moved).flatten(1).sum(1).to(row.dtype)
