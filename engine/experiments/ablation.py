"""Ablation: each head (or attention or MLP output) is taken away in turn, and the change of a metric is measured, exactly."""

from collections.abc import Sequence

import numpy as np

from engine.errors import SpecError
from engine.experiments.ablation_artifacts import store_edits, store_effects, store_reference
from engine.experiments.ablation_work import Work, resolve
from engine.experiments.estimates import Means, means
from engine.experiments.measuring import Measuring
from engine.experiments.prompts import text_prompts
from engine.experiments.stand_ins import Reference, measure_reference
from engine.hooks.pace import Pace
from engine.hooks.sites import Site
from engine.models.loading import LoadedModel
from engine.recorder import Recorder
from engine.result import AblationResult, ArtifactRef, Coverage, Effects, Estimate
from engine.spec.ablation import AblationSpec
from engine.text.datasets import Dataset


def run_ablation(
    spec: AblationSpec,
    recorder: Recorder,
    loaded: LoadedModel,
    dataset: Dataset,
    reference: Dataset | None = None,
    *,
    variants_per_forward: int | None = None,
) -> AblationResult:
    """Effect of taking away each site: metric(ablated) − metric(clean), mean over prompts with a 95 % t-interval.

    An effect says what the model loses when the component's output is replaced, with everything downstream reacting. It does not say
    that the component alone computes the behaviour, and a backup that steps in hides part of it.

    Args:
        spec: the question.
        recorder: gets progress, curves of what is known so far, each prompt's clean metric, and the artefacts `effects.safetensors`,
            `edits.json` and, for modes 'mean' and 'resample', `reference.safetensors`. What it kept of an earlier attempt at the same
            spec is not measured again.
        loaded: the model of the spec.
        dataset: rows to ask it on.
        reference: rows behind modes 'mean' and 'resample'.
        variants_per_forward: how many share a forward pass. When left out that is measured, and runs are equal to rounding (1e-6)
            instead of to the bit.

    Raises:
        SpecError: a layer or head is outside the model.
        DatasetError: a row does not fit the metric or the limits; the text names it.
        ModelError: memory ran out for a single prompt.
        RunCancelled: the recorder was asked to stop.

    Source: Michel et al. 2019 (arXiv 1905.10650) for heads one at a time; Wang et al. 2022 (arXiv 2211.00593) for mean ablation.
    """
    work = resolve(spec, recorder, loaded, dataset=dataset, reference=reference)
    measuring = Measuring(work, Pace(variants_per_forward))
    stand_ins = _measured_reference(work, reference, measuring)
    measuring.measure(stand_ins)
    clean, effects = measuring.measured.clean.astype(np.float64), measuring.measured.effects(seeds=len(spec.seeds))
    for prompt, value in zip(work.prompts, clean, strict=True):
        recorder.item(prompt.id, {"clean": float(value), "tokens": len(prompt.tokens)})
    artifacts = [store_effects(work, clean, effects), store_edits(work)]
    if stand_ins is not None:
        artifacts.append(store_reference(work, stand_ins))
    return _result(work, dataset, clean, effects, artifacts=artifacts, notes=measuring.notes)


def _measured_reference(work: Work, reference: Dataset | None, measuring: Measuring) -> Reference | None:
    if work.spec.mode == "zero":
        return None
    if reference is None:
        raise SpecError(f"mode '{work.spec.mode}' needs the rows of its 'reference' slice.", next_step="Give the reference dataset.")
    measuring.progress.say(f"measuring {len(reference.rows)} reference prompts")
    return measure_reference(
        work.loaded,
        text_prompts(reference.rows, work.loaded, max_length=work.spec.limits.max_length),
        [Site(layer=layer, name=work.spec.site) for layer in work.layers],
        batches=measuring.batches,
        keep=work.spec.mode == "resample",
        cancelled=work.recorder.cancelled,
    )


def _result(
    work: Work, dataset: Dataset, clean: np.ndarray, effects: np.ndarray, *, artifacts: Sequence[ArtifactRef], notes: Sequence[str]
) -> AblationResult:
    table, base = means(effects), means(clean[:, None])
    return AblationResult(
        clean=Estimate(mean=base.mean[0], se=base.se[0], low=base.low[0], high=base.high[0], n=base.n),
        effects=_effects(work, table),
        coverage=_coverage(work, dataset),
        notes=(*_notes(work), *notes),
        artifacts=tuple(artifacts),
    )


def _effects(work: Work, table: Means) -> Effects:
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


def _coverage(work: Work, dataset: Dataset) -> Coverage:
    return Coverage(
        rows=len(work.prompts),
        rows_available=len(dataset.rows),
        layers=len(work.layers),
        layers_available=work.loaded.anatomy.n_layers,
        heads=len(work.heads),
        heads_available=work.loaded.anatomy.n_heads,
    )


def _notes(work: Work) -> tuple[str, ...]:
    if len(work.prompts) > 1:
        return ()
    return ("One prompt says nothing of others: there is no standard error, and the intervals are points.",)
