"""From many validated runs of one task to one statement per site: an effect, how sure it is, and why not surer."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal
from uuid import UUID

import numpy as np
import rfc8785

from engine.evidence.pooling import Column, Pooled, outliers, pool_columns
from engine.hooks.sites import Site

METHOD_VERSION = 1
"""Raised whenever the same runs would give other numbers or another status."""

MIN_SHARDS = 3
MIN_CONTRIBUTORS = 3
SUPPORTED_SHARDS = 5
SUPPORTED_CLASSES = 2
SUPPORTED_Q = 0.05

Status = Literal["unverified", "candidate", "supported", "contested", "null"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One accepted submission, its columns in the order of the question's sites."""

    submission_id: UUID
    contributor_id: UUID
    hardware_class: str
    shard_no: int
    estimate: tuple[float, ...]
    se: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a task fixed before it opened.

    Attributes:
        sites: the family over which q is controlled.
        delta: smallest effect of interest, in the metric's unit.
        n_shards: shards of the task.
        open_shards: shards that still wait for their quorum; numbers are shown when there are none.
    """

    metric: str
    unit: str
    sites: tuple[Site, ...]
    delta: float
    n_shards: int
    open_shards: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """The numbers of one site; see `engine.evidence.pooling.Pooled`.

    Attributes:
        loo_low: smallest estimate when one contributor is left out; None if somebody holds all shards alone.
        loo_high: largest one.
        shards: per shard its number, its effect (median of replicas), and whether it lies far from the others.
    """

    estimate: float
    se: float
    ci_low: float
    ci_high: float
    next_low: float
    next_high: float
    tau: float
    i2: float
    p: float
    q: float
    confidence: float
    sign_agreement: float
    sign_low: float
    sign_high: float
    median: float
    loo_low: float | None
    loo_high: float | None
    shards: tuple[tuple[int, float, bool], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledEffect:
    """What the runs say about one site.

    Attributes:
        numbers: None while the status is `unverified`: nothing is claimed early.
        status_reason: why the status is not one step higher.
        inputs_hash: hash of everything that the numbers were made from; the same inputs give the same numbers.
    """

    site_no: int
    site: Site
    status: Status
    status_reason: str
    numbers: Numbers | None
    k_shards: int
    n_contributors: int
    n_classes: int
    supporting_runs: int
    inputs_hash: str
    method_version: int = METHOD_VERSION


def pool(evidence: Iterable[Evidence], question: Question) -> list[PooledEffect]:
    """One pooled effect per site. The order of the evidence and repetitions in it make no difference.

    Args:
        evidence: accepted submissions; a second one of the same person for the same shard is ignored.
        question: what the task fixed.
    """
    votes = _one_vote_each(evidence)
    common = PooledEffect(
        site_no=0,
        site=question.sites[0],
        status="unverified",
        status_reason=_why_unverified(votes, question),
        numbers=None,
        k_shards=len({vote.shard_no for vote in votes}),
        n_contributors=len({vote.contributor_id for vote in votes}),
        n_classes=len({vote.hardware_class for vote in votes}),
        supporting_runs=len(votes),
        inputs_hash=_hash(votes, question),
    )
    blank = [replace(common, site_no=number, site=site) for number, site in enumerate(question.sites)]
    if common.status_reason:
        return blank
    return [_judged(effect, numbers, question) for effect, numbers in zip(blank, _numbers(votes, question), strict=True)]


def _one_vote_each(evidence: Iterable[Evidence]) -> list[Evidence]:
    first: dict[tuple[int, UUID], Evidence] = {}
    for vote in sorted(evidence, key=lambda vote: (vote.shard_no, vote.submission_id)):
        first.setdefault((vote.shard_no, vote.contributor_id), vote)
    return sorted(first.values(), key=lambda vote: (vote.shard_no, vote.submission_id))


def _why_unverified(votes: Sequence[Evidence], question: Question) -> str:
    shards, people = len({vote.shard_no for vote in votes}), len({vote.contributor_id for vote in votes})
    missing: list[str] = []
    if question.open_shards:
        missing.append(f"{question.open_shards} of {question.n_shards} shards still wait for their quorum")
    if shards < MIN_SHARDS:
        missing.append(f"{_count(shards, 'verified shard')} of at least {MIN_SHARDS}")
    if people < MIN_CONTRIBUTORS:
        missing.append(f"{_count(people, 'contributor')} of at least {MIN_CONTRIBUTORS}")
    return "; ".join(missing)


def _numbers(votes: Sequence[Evidence], question: Question) -> list[Numbers]:
    shard_numbers, effects, se = _by_shard(votes)
    pooled = pool_columns(effects, se, delta=question.delta)
    loo = _leave_one_out(votes)
    far = outliers(effects)
    return [
        Numbers(
            **_row(pooled, site_no),
            loo_low=None if loo is None else float(np.min(loo[:, site_no])),
            loo_high=None if loo is None else float(np.max(loo[:, site_no])),
            shards=tuple(
                (number, float(effect), bool(flag))
                for number, effect, flag in zip(shard_numbers, effects[:, site_no], far[:, site_no], strict=True)
            ),
        )
        for site_no in range(len(question.sites))
    ]


def _row(pooled: Pooled, site_no: int) -> dict[str, float]:
    return {name: float(getattr(pooled, name)[site_no]) for name in Pooled.__dataclass_fields__}


def _by_shard(votes: Sequence[Evidence]) -> tuple[list[int], Column, Column]:
    """Shard numbers, and the medians over the replicas of each: effects and standard errors, `shard site`."""
    replicas: defaultdict[int, list[Evidence]] = defaultdict(list)
    for vote in votes:
        replicas[vote.shard_no].append(vote)
    numbers = sorted(replicas)
    effects, se = (
        np.array([np.median(np.array([getattr(vote, column) for vote in replicas[number]]), axis=0) for number in numbers])
        for column in ("estimate", "se")
    )
    return numbers, effects, se


def _leave_one_out(votes: Sequence[Evidence]) -> Column | None:
    """The estimate without each contributor in turn, `contributor site`; None if nothing is left without one of them."""
    estimates: list[Column] = []
    for left_out in sorted({vote.contributor_id for vote in votes}):
        rest = [vote for vote in votes if vote.contributor_id != left_out]
        if not rest:
            return None
        estimates.append(np.mean(_by_shard(rest)[1], axis=0))
    return np.array(estimates)


def _judged(effect: PooledEffect, numbers: Numbers, question: Question) -> PooledEffect:
    status, reason = _status(effect, numbers, question)
    return replace(effect, status=status, status_reason=reason, numbers=numbers)


def _status(effect: PooledEffect, numbers: Numbers, question: Question) -> tuple[Status, str]:
    delta = question.delta
    if max(abs(numbers.ci_low), abs(numbers.ci_high)) <= delta:
        return "null", f"the whole interval lies within ±{delta:g} {question.unit}, the smallest effect of interest"
    significant = numbers.q < SUPPORTED_Q
    if significant and numbers.next_low <= 0 <= numbers.next_high:
        return "contested", f"the mean differs from 0 (q = {numbers.q:.2g}), but the next shard may show the opposite sign"
    missing = _why_candidate(effect, numbers, delta)
    if missing:
        return "candidate", "; ".join(missing)
    return "supported", "no later task on held-out data or another model revision has confirmed it yet"


def _why_candidate(effect: PooledEffect, numbers: Numbers, delta: float) -> list[str]:
    missing: list[str] = []
    if effect.k_shards < SUPPORTED_SHARDS:
        missing.append(f"{effect.k_shards} verified shards of at least {SUPPORTED_SHARDS}")
    if effect.n_classes < SUPPORTED_CLASSES:
        missing.append(f"{_count(effect.n_classes, 'hardware class', 'hardware classes')} of at least {SUPPORTED_CLASSES}")
    if numbers.q >= SUPPORTED_Q:
        missing.append(f"q = {numbers.q:.2g} against |effect| ≤ {delta:g} is not below {SUPPORTED_Q}")
    if not _keeps_sign(numbers):
        missing.append("leaving out one contributor can change the sign")
    return missing


def _keeps_sign(numbers: Numbers) -> bool:
    if numbers.loo_low is None or numbers.loo_high is None:
        return False
    return numbers.loo_low * numbers.estimate > 0 and numbers.loo_high * numbers.estimate > 0


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def _hash(votes: Sequence[Evidence], question: Question) -> str:
    inputs = {
        "method_version": METHOD_VERSION,
        "metric": question.metric,
        "unit": question.unit,
        "delta": question.delta,
        "n_shards": question.n_shards,
        "open_shards": question.open_shards,
        "sites": [site.model_dump(mode="json") for site in question.sites],
        "votes": [
            [str(vote.submission_id), str(vote.contributor_id), vote.hardware_class, vote.shard_no, list(vote.estimate), list(vote.se)]
            for vote in votes
        ],
    }
    return hashlib.sha256(rfc8785.dumps(inputs)).hexdigest()
