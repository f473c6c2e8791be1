"""The ladder: what each status needs, and that order and repetition change nothing."""

from dataclasses import replace
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.evidence.finding import Evidence, PooledEffect, Question, pool
from engine.hooks.sites import Site

SITES = (Site(layer=0, name="z", head=0), Site(layer=0, name="z", head=1))


def question(**changes: object) -> Question:
    plain = Question(metric="loss", unit="nats", sites=SITES, delta=0.01, n_shards=6, open_shards=0)
    return replace(plain, **changes)  # type: ignore[arg-type]


def votes(shards: list[list[float]], *, people: int = 5, classes: int = 1, replicas: int = 2) -> list[Evidence]:
    """Every shard answered by `replicas` people in turn, who all see the same effects."""
    made = []
    for number, effects in enumerate(shards):
        for replica in range(replicas):
            person = (number + replica) % people
            made.append(
                Evidence(
                    submission_id=UUID(int=1 + number * replicas + replica),
                    contributor_id=UUID(int=1000 + person),
                    hardware_class=f"cpu/{person % classes}",
                    shard_no=number,
                    estimate=tuple(effects),
                    se=tuple(0.01 for _ in effects),
                )
            )
    return made


STRONG = [[1.0 + 0.01 * number, 0.0005 * (-1) ** number] for number in range(6)]


def first(evidence: list[Evidence], asked: Question) -> PooledEffect:
    return pool(evidence, asked)[0]


def test_one_hardware_class_is_the_only_reason_against_support() -> None:
    effect, nothing = pool(votes(STRONG), question())
    assert (effect.status, effect.status_reason) == ("candidate", "1 hardware class of at least 2")
    assert effect.numbers is not None
    assert effect.numbers.ci_low < 1.025 < effect.numbers.ci_high
    assert (effect.k_shards, effect.n_contributors, effect.n_classes, effect.supporting_runs) == (6, 5, 1, 12)
    assert nothing.status == "null"


def test_two_hardware_classes_support_it() -> None:
    effect = first(votes(STRONG, classes=2), question())
    assert effect.status == "supported"
    assert "held-out" in effect.status_reason


@pytest.mark.parametrize(
    ("evidence", "asked", "reason"),
    [
        (votes(STRONG), question(open_shards=2), "2 of 6 shards still wait for their quorum"),
        (votes(STRONG[:2]), question(n_shards=2), "2 verified shards of at least 3"),
        (votes(STRONG, people=2), question(), "2 contributors of at least 3"),
        ([], question(open_shards=6), "6 of 6 shards still wait for their quorum; 0 verified shards of at least 3"),
    ],
)
def test_too_little_evidence_shows_no_number(evidence: list[Evidence], asked: Question, reason: str) -> None:
    effect = first(evidence, asked)
    assert effect.status == "unverified"
    assert effect.numbers is None
    assert reason in effect.status_reason


def test_every_missing_step_is_named() -> None:
    weak = [[0.1, 0.0], [-0.2, 0.0], [0.3, 0.0]]
    effect = first(votes(weak, people=3, replicas=1), question(n_shards=3))
    assert effect.status == "candidate"
    for reason in ("3 verified shards of at least 5", "1 hardware class of at least 2", "q = ", "leaving out one contributor"):
        assert reason in effect.status_reason


def test_a_mean_that_the_next_shard_may_contradict_is_contested() -> None:
    spread = [[0.05], [0.06], [0.2], [0.25], [0.3], [0.35], [0.4], [0.5], [0.02], [0.01]]
    effect = first(votes(spread, classes=2), question(sites=SITES[:1], delta=0.0, n_shards=10))
    assert effect.numbers is not None
    assert effect.numbers.q < 0.05
    assert effect.numbers.next_low < 0
    assert effect.status == "contested"


def test_somebody_who_carries_the_sign_alone_keeps_it_from_support() -> None:
    """One person's shards are positive, all the others' negative: without that person the sign flips."""
    shards = [[5.0], [5.1], [5.2], [5.0], [5.1], [5.2], [5.1], [-0.1], [-0.1], [-0.1]]
    evidence = votes(shards, replicas=1, people=1, classes=1)
    evidence = [
        replace(vote, contributor_id=UUID(int=2000 + max(0, vote.shard_no - 6)), hardware_class=f"c{vote.shard_no % 2}")
        for vote in evidence
    ]
    effect = first(evidence, question(sites=SITES[:1], n_shards=10))
    assert effect.numbers is not None
    assert effect.numbers.loo_low is not None
    assert effect.numbers.loo_low < 0 < effect.numbers.estimate
    assert effect.status != "supported"


def test_a_shard_is_the_median_of_its_replicas() -> None:
    shards = votes([[1.0], [1.1], [1.2], [1.3]], replicas=3)
    liar = shards[0]
    shards[0] = replace(liar, estimate=(900.0,))
    effect = first(shards, question(sites=SITES[:1], n_shards=4))
    assert effect.numbers is not None
    assert effect.numbers.shards[0][:2] == (0, 1.0)
    assert effect.numbers.estimate == pytest.approx(1.15)


def test_copies_of_one_run_are_not_more_evidence() -> None:
    once = first(votes(STRONG, replicas=1), question())
    often = first(votes(STRONG, replicas=5), question())
    assert once.numbers is not None
    assert often.numbers is not None
    assert (often.numbers.ci_low, often.numbers.ci_high, often.k_shards) == (once.numbers.ci_low, once.numbers.ci_high, 6)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_order_and_duplicates_change_nothing(data: st.DataObject, seed: int) -> None:
    draw = np.random.default_rng(seed)
    evidence = votes(draw.normal(0.1, 0.1, size=(6, 2)).tolist(), classes=2)
    shuffled = data.draw(st.permutations(evidence))
    repeated = data.draw(st.lists(st.sampled_from(evidence), max_size=8))
    assert pool([*shuffled, *repeated], question()) == pool(evidence, question())


def test_any_change_of_the_inputs_changes_their_hash() -> None:
    evidence = votes(STRONG)
    plain = first(evidence, question()).inputs_hash
    changed = [replace(evidence[0], estimate=(1.0000001, 0.0)), *evidence[1:]]
    assert len({plain, first(changed, question()).inputs_hash, first(evidence, question(delta=0.02)).inputs_hash}) == 3
