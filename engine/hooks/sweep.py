"""Many edited variants of one batch, each measured exactly, without redoing what an edit cannot change.

A variant's edits begin at some layer. Everything below that layer is as in the clean run, so the variant starts there from the
stored residual stream. Where the edits only touch what attention (or the MLP) of that layer writes, that output is exchanged and
attention is not run again either. The model's own code does all of the arithmetic; `naive_sweep` is the twin that runs whole
forward passes, and the tests hold the two together.

How many variants share a forward pass is learnt on the way (`engine.hooks.pace`), and halved when memory runs out.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.errors import RunCancelled, SpecError
from engine.hooks.anatomy import Anatomy
from engine.hooks.batch import Batch, forward
from engine.hooks.pace import Pace, Stretch
from engine.hooks.replay import Group, Readout, Replay, Variant, Way, clean_run, replayed
from engine.hooks.replayable import working_ways
from engine.hooks.shortage import give_memory_back, ran_out_of_memory
from engine.hooks.sites import Site
from engine.hooks.wiring import Addressed, edited

CPU_CACHE_BYTES = 8 * 2**20
"""The widest activation of one forward pass to begin with: it should stay in the processor's caches."""
CPU_BYTES = 64 * 2**20
"""The same at most."""
GPU_BYTES = 512 * 2**20
"""Both for a GPU, which has memory to spare and wants to be kept busy."""
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
    outlines: Sequence[Variant] | None = None,
    wanted: Iterable[int] | None = None,
    cancelled: Callable[[], bool] = _never,
    pace: Pace | None = None,
    variants_per_forward: int | None = None,
) -> Iterator[SweepPart]:
    """The clean metric first, then the variants' in parts as they are done, top layers last.

    Args:
        loaded: the model.
        batch: prompts.
        variants: lists of edits; looked at one by one, so a sequence may make them when asked.
        readout: the metric.
        outlines: the same with any values, if it costs something to make them; where the model is changed has to be right.
        wanted: indices of the variants to measure; all when None.
        cancelled: asked before every forward pass.
        pace: what earlier sweeps of the same run have learnt about how many variants to put along the batch.
        variants_per_forward: how many, if that is not to be measured; sweeps are then equal to the bit.

    Raises:
        RunCancelled: `cancelled` said so.
        SpecError: an edit names a layer or head that the model lacks.
        RuntimeError: memory ran out for a single variant; `engine.hooks.shortage` recognises that.
    """
    assert pace is None or variants_per_forward is None, "a pace has its own number"
    _refuse_edited(loaded)
    groups = _grouped(loaded, outlines or variants, range(len(variants)) if wanted is None else wanted)
    stop_if(cancelled)
    with loaded.lock:
        clean, stored = clean_run(loaded, batch, readout, groups)
    yield SweepPart(clean, (), clean.new_empty(0, batch.size))
    run = Replay(loaded=loaded, batch=batch, readout=readout, stored=stored)
    pace = pace or Pace(variants_per_forward)
    for group in groups:
        for chunk, values in _group_swept(run, group, variants, pace=pace, cancelled=cancelled):
            yield SweepPart(clean, chunk, values.view(len(chunk), batch.size))


def _group_swept(
    run: Replay, group: Group, variants: Sequence[Variant], *, pace: Pace, cancelled: Callable[[], bool]
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Indices of variants and their metric, one forward pass after the other."""
    stretch, left = _stretch(run, group), tuple(group.variants)
    while left:
        stop_if(cancelled)
        chunk = left[: pace.choose(stretch, len(left))]
        values = _tried(run, group, [variants[index] for index in chunk], stretch=stretch, pace=pace)
        if values is None:
            give_memory_back()
            continue
        left = left[len(chunk) :]
        yield chunk, values


def _tried(run: Replay, group: Group, chunk: Sequence[Variant], *, stretch: Stretch, pace: Pace) -> Tensor | None:
    """The metric of a chunk; None if it has to be smaller because memory ran out."""
    with run.loaded.lock:
        started = time.perf_counter()
        try:
            values = replayed(run, group, chunk)
            _finish_on_device(values)
        except (RuntimeError, MemoryError) as error:
            if len(chunk) == 1 or not ran_out_of_memory(error):
                raise
            pace.ran_out(stretch, len(chunk))
            return None
        pace.took(stretch, len(chunk), time.perf_counter() - started)
    return values


def _finish_on_device(values: Tensor) -> None:
    """Waits for a device that works behind our back, or the clock would measure nothing."""
    if values.device.type != "cpu":
        torch.accelerator.synchronize(values.device)


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


def _grouped(loaded: Addressed, variants: Sequence[Variant], wanted: Iterable[int]) -> list[Group]:
    groups, anatomy = dict[tuple[int, str], Group](), loaded.anatomy
    works = working_ways(loaded)
    for index in wanted:
        variant = variants[index]
        for site in _sites(variant):
            anatomy.check(site)
            with loaded.lock:  # found out by a forward pass of the whole model, so before a replay changes it
                loaded.wiring.refuse_unreachable(site, anatomy)
        assert variant, f"variant {index} has no edits"
        way = _working_way(_way(anatomy, variant), works)
        group = Group(min(_layer(anatomy, site) for site in _sites(variant)), way)
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


def _working_way(wanted: Way, works: frozenset[Way]) -> Way:
    """The wanted way, or a longer one that works in this model."""
    return wanted if wanted in works else "general" if "general" in works and wanted != "whole" else "whole"


def _stretch(run: Replay, group: Group) -> Stretch:
    """What the variants of a group cost. The topmost layer is a kind of its own: there only the positions that are read are redone."""
    anatomy, batch, positions = run.anatomy, run.batch, run.readout.positions
    tokens, kept = batch.size * batch.width, batch.size * (batch.width if positions is None else len(positions))
    vocabulary = run.loaded.model.config.get_text_config().vocab_size
    weights = sum(parameter.numel() for parameter in anatomy.blocks[group.layer].layer.parameters())
    head = anatomy.d_model * vocabulary * kept / tokens / max(1, weights)  # in layers
    first, widest = (CPU_CACHE_BYTES, CPU_BYTES) if batch.input_ids.device.type == "cpu" else (GPU_BYTES, GPU_BYTES)
    return Stretch(
        kind=(group.way, group.layer == anatomy.n_layers - 1),
        tokens=tokens,
        work=anatomy.n_layers - group.layer - 0.5 + head,
        guess=max(1, first // (4 * anatomy.d_mlp * tokens)),
        most=max(1, min(len(group.variants), widest // (4 * anatomy.d_mlp * tokens), LOGIT_ELEMENTS // (kept * vocabulary))),
    )
