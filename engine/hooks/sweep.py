"""Many edited variants of one batch, each measured exactly, without redoing what an edit cannot change.

A variant's edits begin at some layer. Everything below that layer is as in the clean run, so the variant starts there from the
stored residual stream. Where the edits only touch what attention (or the MLP) of that layer writes, that output is exchanged and
attention is not run again either. The model's own code does all of the arithmetic; `naive_sweep` is the twin that runs whole
forward passes, and the tests hold the two together.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.errors import RunCancelled, SpecError
from engine.hooks.anatomy import Anatomy
from engine.hooks.batch import Batch, forward
from engine.hooks.replay import Group, Readout, Replay, Variant, Way, clean_run, replayed
from engine.hooks.sites import Site
from engine.hooks.wiring import Addressed, edited

CPU_CACHE_BYTES = 8 * 2**20
"""The widest activation of one forward should stay in the processor's caches; more variants at once are slower there."""
GPU_BYTES = 512 * 2**20
"""The same for a GPU, which has memory to spare and wants to be kept busy."""
LOGIT_ELEMENTS = 2**27
"""Logits held at once, at most (one variant counts even if it has more)."""


class SweepPart(NamedTuple):
    """Some variants, measured.

    Attributes:
        clean: the metric of the unedited model, [batch].
        variants: indices of the variants; none in the first part, which brings the clean run only.
        values: their metric, [variants, batch].
    """

    clean: Tensor
    variants: tuple[int, ...]
    values: Tensor


def _never() -> bool:
    return False


def sweep(
    loaded: Addressed,
    batch: Batch,
    variants: Sequence[Variant],
    readout: Readout,
    *,
    cancelled: Callable[[], bool] = _never,
    variants_per_forward: int | None = None,
) -> Iterator[SweepPart]:
    """The clean metric first, then the variants' in parts as they are done, top layers last.

    Args:
        loaded: the model.
        batch: prompts.
        variants: lists of edits; looked at one by one, so a sequence may make them when asked.
        readout: the metric.
        cancelled: asked before every forward pass.
        variants_per_forward: how many are put along the batch; chosen from widths when None.

    Raises:
        RunCancelled: `cancelled` said so.
        SpecError: an edit names a layer or head that the model lacks.
    """
    groups = _grouped(loaded.anatomy, variants)
    _refuse_edited(loaded)
    stop_if(cancelled)
    with loaded.lock:
        clean, stored = clean_run(loaded, batch, readout, groups)
    yield SweepPart(clean, (), clean.new_empty(0, batch.size))
    run = Replay(loaded=loaded, batch=batch, readout=readout, stored=stored)
    at_once = variants_per_forward or _variants_per_forward(loaded, batch, readout)
    for group in groups:
        for start in range(0, len(group.variants), at_once):
            stop_if(cancelled)
            chunk = tuple(group.variants[start : start + at_once])
            with loaded.lock:
                values = replayed(run, group, [variants[index] for index in chunk])
            yield SweepPart(clean, chunk, values.view(len(chunk), batch.size))


def naive_sweep(loaded: Addressed, batch: Batch, variants: Sequence[Variant], readout: Readout) -> Tensor:
    """[variants, batch]: the same by one whole forward pass per variant. Slow, and obviously right."""
    values = []
    for variant in variants:
        with edited(loaded, variant):
            values.append(readout(forward(loaded.model, batch, readout.positions)))
    return torch.stack(values)


def _refuse_edited(loaded: Addressed) -> None:
    with loaded.lock:
        if loaded.wiring.edited:
            raise SpecError(
                "a sweep starts from the unedited model, but an edit is in place.", next_step="Put that edit into each variant."
            )


def stop_if(cancelled: Callable[[], bool]) -> None:
    """Raises RunCancelled when somebody asked for it."""
    if cancelled():
        raise RunCancelled("the run was cancelled.")


def _grouped(anatomy: Anatomy, variants: Sequence[Variant]) -> list[Group]:
    groups = dict[tuple[int, str], Group]()
    for index, variant in enumerate(variants):
        for change in variant:
            anatomy.check(change.site)
        assert variant, f"variant {index} has no edits"
        group = Group(min(_layer(anatomy, site) for site in _sites(variant)), _way(anatomy, variant))
        groups.setdefault((group.layer, group.way), group).variants.append(index)
    return sorted(groups.values(), key=lambda group: (group.layer, group.way))


def _sites(variant: Variant) -> list[Site]:
    """Where a variant changes the model, and where it looks in order to decide."""
    conditions = [change.when.site for change in variant if change.when is not None and change.when.site is not None]
    return [change.site for change in variant] + conditions


def _layer(anatomy: Anatomy, site: Site) -> int:
    """The layer at whose input a run that is changed at a site differs from the clean one, or reads something."""
    return site.layer if site.layer is not None else 0 if site.name == "embed" else anatomy.n_layers - 1


def _way(anatomy: Anatomy, variant: Variant) -> Way:
    sites = _sites(variant)
    names, layers = {site.name for site in sites}, {site.layer for site in sites}
    if "embed" in names:
        return "whole"
    if not anatomy.exchangeable or len(layers) > 1 or len(names) > 1 or len(sites) > len(variant) or any(change.rows for change in variant):
        return "general"
    name = names.pop()
    return name if name in ("z", "attn_out", "mlp_out") else "general"


def _variants_per_forward(loaded: Addressed, batch: Batch, readout: Readout) -> int:
    """How many copies of the batch go through the model together. A fixed rule, so that runs are repeatable to the bit."""
    tokens = batch.size * batch.width
    kept = batch.size * (batch.width if readout.positions is None else len(readout.positions))
    widest = CPU_CACHE_BYTES if batch.input_ids.device.type == "cpu" else GPU_BYTES
    budget = widest // (4 * loaded.anatomy.d_mlp)
    vocabulary = loaded.model.config.get_text_config().vocab_size
    return max(1, min(budget // tokens, LOGIT_ELEMENTS // (kept * vocabulary)))
