"""When a submission is acceptable, and when two runs of the same shard agree.

Reason codes of a refusal:

    task_mismatch          the submission is for another task than its lease
    spec_mismatch          another question than the task asks, or other rows than the lease gives
    dataset_mismatch       another content of the dataset
    model_mismatch         other weights, or another shape of the model, than the task's accepted runs
    reference_mismatch     another reference slice than the task's accepted runs
    wrong_metric           another kind, metric or unit than the spec asks for
    incomplete             sites are missing or surplus, or not all rows were used
    out_of_range           a number that the metric cannot have
    inconsistent           parts of the submission contradict each other
    implausible_duration   longer than the lease is old, or no time at all
    late, duplicate, disagrees, nondeterministic, withdrawn: verdicts about time and about the other replicas
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from engine.evidence.submission import SubmissionPayload
from engine.hooks.sites import Site
from engine.result import AblationResult, Effects, Estimate
from engine.spec import AblationSpec, TaskSpec

AGREEING_SHARE = 0.99
"""Share of sites at which two replicas must be close."""

ABSOLUTE_TOLERANCE = 1e-6
"""Closeness that is always enough, in the metric's unit."""

TOLERANCES: dict[str, float] = {"float32": 0.02, "float16": 0.1, "bfloat16": 0.5}
"""Default distance within which replicas agree, in standard errors of the shard, by precision."""

CLOCK_SLACK_S = 60.0
"""How far clocks may differ, and how long before the lease a run may have begun."""

MAX_SITES = 100_000

Reason = Literal[
    "task_mismatch",
    "spec_mismatch",
    "dataset_mismatch",
    "model_mismatch",
    "reference_mismatch",
    "wrong_metric",
    "incomplete",
    "out_of_range",
    "inconsistent",
    "implausible_duration",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What was really run, as told by a run; the same for all runs of a task."""

    fingerprint: str
    n_layers: int
    n_heads: int
    reference_sha256: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the instance knows about the shard before it looks at a submission.

    Attributes:
        spec: the task's spec with the shard's rows.
        task_spec_hash: hash of the task's spec.
        dataset_hash: content hash of the whole dataset.
        model: what the task's first accepted run used; None while there is none.
        lease_age_s: seconds since the shard was leased, by the server's clock.
    """

    task_id: str
    spec: TaskSpec
    task_spec_hash: str
    dataset_hash: str
    model: ModelShape | None
    lease_age_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one run says about a shard: effects and their standard errors, sites sorted by layer and head."""

    model: ModelShape
    n: int
    estimate: Sequence[float]
    se: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a submission cannot count: a code for programs, a sentence for people."""

    reason: Reason
    text: str


def check(payload: SubmissionPayload, expected: Expected) -> Refusal | None:
    """Why this submission cannot count, or None when nothing speaks against it."""
    return (
        _check_question(payload, expected)
        or _check_origin(payload, expected)
        or _check_shape(payload.result_full, expected.spec)
        or _check_numbers(payload.result_full)
        or _check_duration(payload, expected.lease_age_s)
    )


def model_shape(payload: SubmissionPayload) -> ModelShape:
    """What a submission says about the model it ran."""
    provenance, coverage = payload.metadata.provenance, payload.result_full.coverage
    return ModelShape(
        fingerprint=provenance.model_fingerprint,
        n_layers=coverage.layers_available,
        n_heads=coverage.heads_available,
        reference_sha256=provenance.reference_sha256,
    )


def expected_sites(spec: AblationSpec, *, n_layers: int, n_heads: int) -> tuple[Site, ...]:
    """The sites that a full answer to this spec covers, sorted by layer and head."""
    layers = _chosen(spec.layers, n_layers, spec.limits.layers)
    if spec.site != "z":
        return tuple(Site(layer=layer, name=spec.site) for layer in layers)
    heads = _chosen(spec.heads, n_heads, spec.limits.heads)
    return tuple(Site(layer=layer, name="z", head=head) for layer in layers for head in heads)


def expected_rows(spec: TaskSpec) -> int | None:
    """How many prompts a full answer uses; None when the spec names no rows."""
    if spec.dataset.rows is None:
        return None
    return min(len(spec.dataset.rows), spec.limits.records or len(spec.dataset.rows))


def in_order(effects: Effects) -> Effects:
    """The same effects with their sites sorted by layer and head, so that columns of different runs line up."""
    order = sorted(range(len(effects.sites)), key=lambda index: _place(effects.sites[index]))
    columns = {name: tuple(getattr(effects, name)[index] for index in order) for name in ("sites", "estimate", "se", "low", "high")}
    return effects.model_copy(update=columns)


def answer(payload: SubmissionPayload) -> Answer:
    """What a submission says, with its sites in order."""
    effects = in_order(payload.result_full.effects)
    return Answer(model=model_shape(payload), n=effects.n, estimate=effects.estimate, se=effects.se)


def agree(one: Answer, other: Answer, tolerance: float) -> bool:
    """Whether two runs of the same shard found the same thing with the same model.

    At 99 % of the sites or more, both the effects and their standard errors must be closer than `tolerance` times the smaller
    of the two standard errors (or than 1e-6). What slips through is so bounded by a stated fraction of the sampling error,
    and claiming a wide standard error buys nobody agreement.

    Args:
        one: one run's answer.
        other: another run's.
        tolerance: distance in standard errors of the shard.
    """
    if (one.model, one.n, len(one.estimate)) != (other.model, other.n, len(other.estimate)):
        return False
    allowed = np.maximum(ABSOLUTE_TOLERANCE, tolerance * np.minimum(one.se, other.se))
    close = (np.abs(np.subtract(one.estimate, other.estimate)) <= allowed) & (np.abs(np.subtract(one.se, other.se)) <= allowed)
    return bool(np.mean(close) >= AGREEING_SHARE)


def majority(agreement: Sequence[Sequence[bool]]) -> list[int]:
    """Indices of the largest group of replicas that all agree with each other, if it is more than half of them; else nothing.

    Args:
        agreement: symmetric matrix, `agreement[i][j]` says whether replicas i and j agree.
    """
    count = len(agreement)
    groups = [_grown_from(start, agreement) for start in range(count)]
    largest = max(groups, key=len) if groups else list[int]()
    return largest if 2 * len(largest) > count else []


def _grown_from(start: int, agreement: Sequence[Sequence[bool]]) -> list[int]:
    group = [start]
    for index in range(len(agreement)):
        if index != start and all(agreement[index][member] for member in group):
            group.append(index)
    return sorted(group)


def _place(site: Site) -> tuple[int, int]:
    return site.depth, -1 if site.head is None else site.head


def _chosen(wanted: Literal["all"] | tuple[int, ...], available: int, first: int | None) -> list[int]:
    chosen = list(range(available)) if wanted == "all" else list(wanted)
    return sorted(chosen[:first])


def _check_question(payload: SubmissionPayload, expected: Expected) -> Refusal | None:
    metadata, provenance = payload.metadata, payload.metadata.provenance
    if str(payload.task_id) != expected.task_id:
        return Refusal(reason="task_mismatch", text=f"the lease is for task {expected.task_id}, the submission for {payload.task_id}")
    if metadata.spec_hash != expected.task_spec_hash:
        return _differs("spec_mismatch", "spec_hash", metadata.spec_hash, expected.task_spec_hash)
    if provenance.spec_sha256 != expected.spec.sha256:
        return _differs("spec_mismatch", "the spec of the shard", provenance.spec_sha256, expected.spec.sha256)
    if provenance.question_sha256 != expected.spec.question_sha256:
        return _differs("inconsistent", "the question's hash", provenance.question_sha256, expected.spec.question_sha256)
    return None


def _check_origin(payload: SubmissionPayload, expected: Expected) -> Refusal | None:
    metadata, provenance = payload.metadata, payload.metadata.provenance
    if provenance.dataset_sha256 != expected.dataset_hash:
        return _differs("dataset_mismatch", "the dataset's hash", provenance.dataset_sha256, expected.dataset_hash)
    if provenance.hardware != metadata.hardware:
        return Refusal(reason="inconsistent", text="metadata.hardware and metadata.provenance.hardware name different machines")
    if (provenance.reference_sha256 is None) != (expected.spec.reference is None):
        return Refusal(reason="inconsistent", text="a reference slice was used without being asked for, or the other way round")
    return _check_model(model_shape(payload), expected.model)


def _check_model(given: ModelShape, known: ModelShape | None) -> Refusal | None:
    if known is None or given == known:
        return None
    if given.reference_sha256 != known.reference_sha256:
        return _differs("reference_mismatch", "the reference slice's hash", given.reference_sha256, known.reference_sha256)
    if given.fingerprint != known.fingerprint:
        return _differs("model_mismatch", "the model's fingerprint", given.fingerprint, known.fingerprint)
    text = f"a model of {given.n_layers} layers × {given.n_heads} heads was run; expected {known.n_layers} × {known.n_heads}"
    return Refusal(reason="model_mismatch", text=text)


def _check_shape(result: AblationResult, spec: TaskSpec) -> Refusal | None:
    effects, coverage = result.effects, result.coverage
    asked = (spec.kind, spec.metric, spec.unit)
    if (result.kind, effects.metric, effects.unit) != asked:
        return Refusal(reason="wrong_metric", text=f"{result.kind}, {effects.metric} in {effects.unit} was measured; expected {asked}")
    if coverage.layers_available * max(coverage.heads_available, 1) > MAX_SITES:
        return Refusal(
            reason="out_of_range", text=f"a model of {coverage.layers_available} × {coverage.heads_available} heads is too large"
        )
    sites = expected_sites(spec, n_layers=coverage.layers_available, n_heads=coverage.heads_available)
    if set(effects.sites) != set(sites):
        text = f"{len(effects.sites)} sites are covered, {len(set(sites) - set(effects.sites))} of the {len(sites)} expected are missing"
        return Refusal(reason="incomplete", text=text)
    rows = expected_rows(spec) or coverage.rows
    if {effects.n, result.clean.n, coverage.rows} != {rows}:
        text = f"effects over {effects.n}, clean metric over {result.clean.n}, coverage of {coverage.rows} rows; expected {rows} each"
        return Refusal(reason="incomplete", text=text)
    return None


def _check_numbers(result: AblationResult) -> Refusal | None:
    effects, clean = result.effects, result.clean
    low, middle, high = (np.asarray(column) for column in (effects.low, effects.estimate, effects.high))
    slack = 1e-6 * np.maximum(1.0, np.abs(middle))
    if not _holds(clean) or np.any(low > middle + slack) or np.any(high < middle - slack):
        return Refusal(reason="inconsistent", text="an interval does not hold its own estimate")
    if effects.metric == "accuracy" and (not 0 <= clean.mean <= 1 or np.any(np.abs(middle) > 1)):
        return Refusal(reason="out_of_range", text="an accuracy lies outside 0 to 1, or an effect on it outside −1 to 1")
    if effects.metric in ("loss", "target_loss") and clean.mean < 0:
        return Refusal(reason="out_of_range", text=f"the clean loss is {clean.mean}; a loss is not negative")
    return None


def _holds(estimate: Estimate) -> bool:
    slack = 1e-6 * max(1.0, abs(estimate.mean))
    return estimate.low <= estimate.mean + slack and estimate.high >= estimate.mean - slack


def _check_duration(payload: SubmissionPayload, lease_age_s: float) -> Refusal | None:
    duration = payload.metadata.duration_seconds
    if 0 < duration <= lease_age_s + CLOCK_SLACK_S:
        return None
    text = f"the run is said to have taken {duration:.1f} s, but the shard was leased {lease_age_s:.1f} s ago"
    return Refusal(reason="implausible_duration", text=text)


def _differs(reason: Reason, what: str, given: str | None, wanted: str | None) -> Refusal:
    return Refusal(reason=reason, text=f"{what} is {_short(given)}; expected {_short(wanted)}")


def _short(sha256: str | None) -> str:
    return "none" if sha256 is None else f"{sha256[:12]}…"
