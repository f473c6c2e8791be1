"""Results of several kinds, and those that were stored when there was one."""

from typing import Any

import pytest
from pydantic import ValidationError

from engine.result import AblationResult, Check, Coverage, SelfTestResult, parse_result

COVERAGE = {"rows": 2, "rows_available": 2, "layers": 1, "layers_available": 1, "heads": 1, "heads_available": 1}
STORED: dict[str, Any] = {
    "kind": "ablation",
    "clean": {"mean": 1.0, "se": 0.1, "low": 0.8, "high": 1.2, "n": 2},
    "effects": {
        **{"metric": "loss", "unit": "nats", "sites": [{"layer": 0, "name": "z", "head": 0}]},
        **{"estimate": [0.5], "se": [0.1], "low": [0.3], "high": [0.7], "n": 2},
    },
    "coverage": COVERAGE,
    "notes": ["one thing"],
    "artifacts": [{"name": "effects.safetensors", "sha256": "0" * 64, "size_bytes": 8, "media_type": "application/x-safetensors"}],
}
"""As it was written before there were other kinds."""
CHECKS = (
    Check(name="a", about="this and that", passed=True, difference=0.0, tolerance=1e-5, unit="nats"),
    Check(name="b", about="one and another", passed=False, detail="RuntimeError: boom"),
    Check(name="c", about="here and there", passed=None, detail="not applicable: no cache."),
)


def test_a_result_from_before_is_read() -> None:
    result = parse_result(STORED)
    assert isinstance(result, AblationResult)
    assert result.effects.sites[0].label == "L0H0"
    assert parse_result(result.model_dump(mode="json")) == result
    assert result.model_dump(mode="json") == STORED


def test_a_selftest_is_read_back_and_knows_what_failed() -> None:
    result = SelfTestResult(checks=CHECKS, coverage=Coverage(**COVERAGE))
    assert parse_result(result.model_dump(mode="json")) == result
    assert [check.name for check in result.failed] == ["b"]


@pytest.mark.parametrize(
    "change", [{"kind": "magic"}, {"kind": None}, {"kind": "selftest"}, {"checks": []}, {"coverage": None}, {"clean": {"mean": "nan"}}]
)
def test_what_is_no_result_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        parse_result({**STORED, **change})


def test_a_difference_is_a_number() -> None:
    for wrong in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ValidationError):
            Check(name="a", about="b", passed=False, difference=wrong)
