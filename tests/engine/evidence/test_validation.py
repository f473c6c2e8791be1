"""Each reason of refusal is reachable, a good submission passes, and replicas agree in units of their own standard error."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from engine.evidence.submission import SubmissionPayload
from engine.evidence.validation import Answer, Expected, agree, check, expected_sites, in_order, majority, model_shape
from engine.spec import AblationSpec, Limits
from engine.spec.base import Rows
from tests.community import SPEC, hardware, made_effects, payload, result

TASK = UUID(int=7)
DATASET = "d" * 64
SHARD = SPEC.with_rows(Rows(start=10, stop=20))


def expected(**changes: Any) -> Expected:
    plain = Expected(
        task_id=str(TASK), spec=SHARD, task_spec_hash=SPEC.sha256, dataset_hash=DATASET, model=model_shape(sent()), lease_age_s=10.0
    )
    return replace(plain, **changes)


def sent(spec: AblationSpec = SHARD, **changes: Any) -> SubmissionPayload:
    return payload(spec, task_id=TASK, task_spec_hash=SPEC.sha256, dataset_hash=DATASET, **changes)


def edited(change: Callable[[dict[str, Any]], None]) -> SubmissionPayload:
    values = sent().model_dump(mode="json")
    change(values)
    return SubmissionPayload.model_validate(values)


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """A change that writes the last argument at the place that the others name."""
    *place, last, value = path

    def change(values: dict[str, Any]) -> None:
        target: Any = values
        for key in place:
            target = target[key]
        target[last] = value

    return change


def drop_a_site(values: dict[str, Any]) -> None:
    for column in ("sites", "estimate", "se", "low", "high"):
        values["result_full"]["effects"][column].pop()


def test_a_good_submission_passes() -> None:
    assert check(sent(), expected()) is None
    assert check(sent(), expected(model=None)) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put("task_id", str(UUID(int=8))), "task_mismatch"),
        (put("metadata", "spec_hash", "0" * 64), "spec_mismatch"),
        (put("metadata", "provenance", "spec_sha256", SPEC.sha256), "spec_mismatch"),
        (put("metadata", "provenance", "question_sha256", "0" * 64), "inconsistent"),
        (put("metadata", "provenance", "dataset_sha256", "0" * 64), "dataset_mismatch"),
        (put("metadata", "provenance", "model_fingerprint", "0" * 64), "model_mismatch"),
        (put("metadata", "provenance", "reference_sha256", "0" * 64), "inconsistent"),
        (put("metadata", "hardware", hardware("aarch64").model_dump(mode="json")), "inconsistent"),
        (put("result_full", "effects", "metric", "accuracy"), "wrong_metric"),
        (put("result_full", "effects", "unit", "logits"), "wrong_metric"),
        (drop_a_site, "incomplete"),
        (put("result_full", "coverage", "layers_available", 3), "model_mismatch"),
        (put("result_full", "effects", "n", 9), "incomplete"),
        (put("result_full", "clean", "n", 9), "incomplete"),
        (put("result_full", "coverage", "rows", 9), "incomplete"),
        (put("result_full", "effects", "low", 0, 5.0), "inconsistent"),
        (put("result_full", "clean", "low", 5.0), "inconsistent"),
        (put("metadata", "duration_seconds", 0.0), "implausible_duration"),
        (put("metadata", "duration_seconds", 3600.0), "implausible_duration"),
    ],
)
def test_every_fault_has_its_reason(change: Callable[[dict[str, Any]], None], reason: str) -> None:
    refusal = check(edited(change), expected())
    assert refusal is not None
    assert refusal.reason == reason
    assert refusal.text


def test_a_negative_loss_and_an_endless_model_are_out_of_range() -> None:
    negative = edited(lambda values: values["result_full"]["clean"].update(mean=-1.0, low=-2.0, high=0.0))
    endless = edited(put("result_full", "coverage", "layers_available", 10**9))
    for wrong in (negative, endless):
        refusal = check(wrong, expected(model=None))
        assert refusal is not None
        assert refusal.reason == "out_of_range"


def test_the_expected_sites_follow_the_spec_and_its_limits() -> None:
    capped = SPEC.model_copy(update={"limits": Limits(layers=1, heads=2), "layers": (3, 1)})
    assert [site.label for site in expected_sites(capped, n_layers=4, n_heads=4)] == ["L3H0", "L3H1"]
    whole = SPEC.model_copy(update={"site": "mlp_out"})
    assert [site.label for site in expected_sites(whole, n_layers=2, n_heads=4)] == ["L0 mlp_out", "L1 mlp_out"]


def test_sites_in_another_order_are_lined_up() -> None:
    effects = result(SHARD).effects
    order = [5, 3, 1, 0, 2, 4]
    columns = {name: tuple(getattr(effects, name)[i] for i in order) for name in ("sites", "estimate", "se", "low", "high")}
    assert in_order(effects.model_copy(update=columns)) == effects


def said(estimate: list[float], *, se: float = 0.01, **changes: Any) -> Answer:
    plain = Answer(model=model_shape(sent()), n=10, estimate=tuple(estimate), se=(se,) * len(estimate))
    return replace(plain, **changes)


@pytest.mark.parametrize(("shift", "together"), [(0.0, True), (0.00019, True), (0.00021, False), (5e-7, True)])
def test_agreement_is_measured_in_standard_errors(shift: float, together: bool) -> None:
    estimate = made_effects(SHARD)
    one, other = said(estimate), said([value + shift for value in estimate])
    assert agree(one, other, 0.02) is together
    assert agree(other, one, 0.02) is together


def test_a_wide_standard_error_buys_no_agreement() -> None:
    honest = said([0.0] * 6)
    assert not agree(honest, said([5.0] * 6, se=1e6), 0.02)
    assert not agree(honest, said([0.0] * 6, se=1e6), 0.02)


def test_another_model_or_other_rows_never_agree() -> None:
    honest = said([0.0] * 6)
    assert not agree(honest, replace(honest, model=replace(honest.model, fingerprint="0" * 64)), 0.02)
    assert not agree(honest, replace(honest, n=9), 0.02)


def test_one_site_in_a_hundred_may_differ() -> None:
    plain = [0.0] * 120
    assert agree(said(plain), said([9.0, *plain[1:]]), 0.02)
    assert not agree(said(plain), said([9.0, 9.0, *plain[2:]]), 0.02)


@pytest.mark.parametrize(
    ("pairs", "count", "winners"),
    [
        ([], 0, []),
        ([], 1, [0]),
        ([], 2, []),
        ([(0, 1)], 2, [0, 1]),
        ([(0, 2)], 3, [0, 2]),
        ([(0, 1), (2, 3)], 4, []),
        ([(0, 1), (1, 2)], 4, []),
        ([(1, 2), (1, 4), (2, 4)], 5, [1, 2, 4]),
    ],
)
def test_more_than_half_must_agree_with_each_other(pairs: list[tuple[int, int]], count: int, winners: list[int]) -> None:
    linked = {*pairs, *((b, a) for a, b in pairs), *((i, i) for i in range(count))}
    assert majority([[(i, j) in linked for j in range(count)] for i in range(count)]) == winners
