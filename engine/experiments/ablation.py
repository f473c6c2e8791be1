"""Ablation: each head (or attention or MLP output) is taken away in turn, and the change of a metric is measured, exactly."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from safetensors.numpy import save

from engine.errors import SpecError
from engine.experiments.estimates import Means, means
from engine.experiments.metrics import readout_for
from engine.experiments.prompts import Prompt, prompts_of, text_prompts
from engine.experiments.stand_ins import Reference, StandIns, measure_reference
from engine.hooks.batch import Batch
from engine.hooks.sites import Site
from engine.hooks.sweep import sweep
from engine.models.loading import LoadedModel
from engine.recorder import Recorder
from engine.result import ArtifactRef, Coverage, Effects, Estimate, Result
from engine.spec.ablation import AblationSpec
from engine.text.datasets import Dataset

SAFETENSORS = "application/x-safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What is to be done, all names resolved."""

    spec: AblationSpec
    loaded: LoadedModel
    recorder: Recorder
    prompts: Sequence[Prompt]
    layers: Sequence[int]
    heads: Sequence[int]
    sites: Sequence[Site]


def run_ablation(spec: AblationSpec, recorder: Recorder, loaded: LoadedModel, dataset: Dataset, reference: Dataset | None = None) -> Result:
    """Effect of taking away each site: metric(ablated) − metric(clean), mean over prompts with a 95 % t-interval.

    An effect says what the model loses when the component's output is replaced, with everything downstream reacting. It does not say
    that the component alone computes the behaviour, and a backup that steps in hides part of it.

    Args:
        spec: the question.
        recorder: gets progress, each prompt's clean metric, and the artefacts `effects.safetensors` and, for modes 'mean' and
            'resample', `reference.safetensors`.
        loaded: the model of the spec.
        dataset: rows to ask it on.
        reference: rows behind modes 'mean' and 'resample'.

    Raises:
        SpecError: a layer or head is outside the model.
        DatasetError: a row does not fit the metric or the limits; the text names it.
        RunCancelled: the recorder was asked to stop.

    Source: Michel et al. 2019 (arXiv 1905.10650) for heads one at a time; Wang et al. 2022 (arXiv 2211.00593) for mean ablation.
    """
    work = _resolve(spec, recorder, loaded, dataset)
    stand_ins = _measured_reference(work, reference)
    clean, effects = _measure(work, stand_ins)
    for prompt, value in zip(work.prompts, clean, strict=True):
        recorder.item(prompt.id, {"clean": float(value), "tokens": len(prompt.tokens)})
    artifacts = [_store_effects(work, clean, effects)]
    if stand_ins is not None:
        artifacts.append(_store_reference(work, stand_ins))
    return _result(work, dataset, clean, effects, artifacts)


def _resolve(spec: AblationSpec, recorder: Recorder, loaded: LoadedModel, dataset: Dataset) -> _Work:
    rows = dataset.rows[: spec.limits.records]
    layers = _chosen(spec.layers, loaded.anatomy.n_layers, "layer", loaded)[: spec.limits.layers]
    heads = _chosen(spec.heads, loaded.anatomy.n_heads, "head", loaded)[: spec.limits.heads] if spec.site == "z" else []
    sites = [Site(layer=layer, name=spec.site, head=head) for layer in layers for head in (heads or [None])]
    for site in sites:
        loaded.anatomy.check(site, model=f"'{loaded.ref.id}'")
    prompts = prompts_of(rows, loaded, metric=spec.metric, max_length=spec.limits.max_length)
    return _Work(spec=spec, loaded=loaded, recorder=recorder, prompts=prompts, layers=layers, heads=heads, sites=sites)


def _chosen(wanted: Literal["all"] | Sequence[int], there_are: int, what: str, loaded: LoadedModel) -> list[int]:
    """The indices asked for, in the order given.

    Raises:
        SpecError: one is outside the model.
    """
    if wanted == "all":
        return list(range(there_are))
    indices = list(wanted)
    highest = max(indices)
    if highest >= there_are:
        there = f"{what}s 0 to {there_are - 1}" if there_are else f"no {what}s that the engine can tell apart"
        raise SpecError(f"{what} {highest} does not exist: '{loaded.ref.id}' has {there}.", next_step=f"Correct '{what}s' in the spec.")
    return indices


def _measured_reference(work: _Work, reference: Dataset | None) -> Reference | None:
    if work.spec.mode == "zero":
        return None
    if reference is None:
        raise SpecError(f"mode '{work.spec.mode}' needs the rows of its 'reference' slice.", next_step="Give the reference dataset.")
    work.recorder.progress(0.0, f"measuring {len(reference.rows)} reference prompts")
    limits = work.spec.limits
    return measure_reference(
        work.loaded,
        text_prompts(reference.rows, work.loaded, max_length=limits.max_length),
        [Site(layer=layer, name=work.spec.site) for layer in work.layers],
        batch_size=limits.batch_size,
        keep=work.spec.mode == "resample",
        cancelled=work.recorder.cancelled,
    )


def _measure(work: _Work, reference: Reference | None) -> tuple[np.ndarray, np.ndarray]:
    """Clean metric [prompts] and effects [prompts, sites], in double precision."""
    clean = np.empty(len(work.prompts))
    effects = np.empty((len(work.prompts), len(work.sites)))
    progress = _Progress(work)
    for rows in _batches(work):
        prompts = [work.prompts[row] for row in rows]
        clean[rows], effects[rows] = _measure_batch(work, prompts, reference, progress)
    return clean, effects


def _batches(work: _Work) -> Iterator[list[int]]:
    """Prompts of like length together, so that little is spent on padding."""
    by_length = sorted(range(len(work.prompts)), key=lambda row: len(work.prompts[row].tokens))
    size = work.spec.limits.batch_size
    for start in range(0, len(by_length), size):
        yield by_length[start : start + size]


def _measure_batch(
    work: _Work, prompts: Sequence[Prompt], reference: Reference | None, progress: "_Progress"
) -> tuple[np.ndarray, np.ndarray]:
    """Clean metric [batch] and effects [batch, sites], averaged over seeds."""
    spec, seeds = work.spec, work.spec.seeds
    variants = StandIns(
        loaded=work.loaded,
        mode=spec.mode,
        sites=work.sites,
        seeds=seeds,
        prompts=prompts,
        reference=reference,
        question=spec.question_sha256,
    )
    batch = Batch.of([prompt.tokens for prompt in prompts], device=work.loaded.device)
    readout = readout_for(spec.metric, prompts, work.loaded.device)
    changed = np.empty((len(variants), len(prompts)))
    clean = np.empty(len(prompts))
    for part in sweep(work.loaded, batch, variants, readout, cancelled=work.recorder.cancelled):
        clean = _numbers(part.clean)
        changed[list(part.variants)] = _numbers(part.values)
        progress.add(len(prompts), [variants.sites[index // len(seeds)].layer for index in part.variants])
    by_seed = (changed - clean).reshape(len(work.sites), len(seeds), len(prompts))
    return clean, by_seed.mean(axis=1).T


def _numbers(values: torch.Tensor) -> np.ndarray:
    return values.cpu().double().numpy()


class _Progress:
    """The share of the work done. A variant at a low layer is more of it than one at a high layer."""

    def __init__(self, work: _Work) -> None:
        self._recorder = work.recorder
        self._n_layers = work.loaded.anatomy.n_layers
        self._total = len(work.prompts) * len(work.spec.seeds) * sum(self._cost(site.layer) for site in work.sites)
        self._done = 0.0

    def _cost(self, layer: int) -> int:
        return self._n_layers - layer

    def add(self, prompts: int, layers: Sequence[int]) -> None:
        """Some prompts went through variants at these layers."""
        self._done += prompts * sum(self._cost(layer) for layer in layers)
        message = f"ablating layer {layers[-1]} (layers are 0 to {self._n_layers - 1})" if layers else "running the unedited model"
        self._recorder.progress(self._done / self._total, message)


def _store_effects(work: _Work, clean: np.ndarray, effects: np.ndarray) -> ArtifactRef:
    about = {
        "metric": work.spec.metric,
        "unit": work.spec.unit,
        "prompts": [prompt.id for prompt in work.prompts],
        "sites": [site.model_dump(mode="json") for site in work.sites],
    }
    tensors = {"effects": effects.astype(np.float32), "clean": clean.astype(np.float32)}
    return work.recorder.artifact("effects.safetensors", _packed(tensors, about), SAFETENSORS)


def _store_reference(work: _Work, reference: Reference) -> ArtifactRef:
    """The means [layers, width] behind mode 'mean'; for 'resample' they describe the slice that was drawn from."""
    anatomy = work.loaded.anatomy
    table = torch.stack([reference.means[layer] for layer in work.layers]).numpy()
    if work.spec.site == "z":
        table = table.reshape(len(work.layers), anatomy.n_heads, anatomy.d_head)
    about = {"site": work.spec.site, "layers": list(work.layers), "tokens": reference.tokens}
    return work.recorder.artifact("reference.safetensors", _packed({"means": table}, about), SAFETENSORS)


def _packed(tensors: dict[str, np.ndarray], about: dict[str, object]) -> bytes:
    """Safetensors bytes; one metadata key only, because several would be written in random order and change the hash."""
    return save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, {"about": json.dumps(about, sort_keys=True)})


def _result(work: _Work, dataset: Dataset, clean: np.ndarray, effects: np.ndarray, artifacts: Sequence[ArtifactRef]) -> Result:
    table, base = means(effects), means(clean[:, None])
    return Result(
        kind="ablation",
        clean=Estimate(mean=base.mean[0], se=base.se[0], low=base.low[0], high=base.high[0], n=base.n),
        effects=_effects(work, table),
        coverage=_coverage(work, dataset),
        notes=_notes(work),
        artifacts=tuple(artifacts),
    )


def _effects(work: _Work, table: Means) -> Effects:
    return Effects(
        metric=work.spec.metric,
        unit=work.spec.unit,
        sites=tuple(work.sites),
        estimate=tuple(table.mean.tolist()),
        se=tuple(table.se.tolist()),
        low=tuple(table.low.tolist()),
        high=tuple(table.high.tolist()),
        n=table.n,
    )


def _coverage(work: _Work, dataset: Dataset) -> Coverage:
    return Coverage(
        rows=len(work.prompts),
        rows_available=len(dataset.rows),
        layers=len(work.layers),
        layers_available=work.loaded.anatomy.n_layers,
        heads=len(work.heads),
        heads_available=work.loaded.anatomy.n_heads,
    )


def _notes(work: _Work) -> tuple[str, ...]:
    if len(work.prompts) > 1:
        return ()
    return ("One prompt says nothing of others: there is no standard error, and the intervals are points.",)
