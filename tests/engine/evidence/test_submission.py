"""What travels: summaries, and telemetry that cannot be a bomb."""

import base64
import subprocess
import sys
import zlib
from uuid import uuid4

import pytest
from pydantic import ValidationError

from engine.errors import SubmissionRefused
from engine.evidence.submission import (
    MAX_INFLATED_BYTES,
    SubmissionPayload,
    pack_telemetry,
    read_telemetry,
    summarise,
    telemetry_bytes,
)
from engine.result import Check, SelfTestResult
from tests.community import SPEC, payload, result


def sent(**changes: object) -> SubmissionPayload:
    return payload(SPEC, task_id=uuid4(), task_spec_hash=SPEC.sha256, dataset_hash="d" * 64, **changes)  # type: ignore[arg-type]


def test_a_payload_survives_json() -> None:
    before = sent(telemetry={"layers": [1.5]})
    assert SubmissionPayload.model_validate_json(before.model_dump_json()) == before


def test_the_summary_names_the_largest_effects_first() -> None:
    summary = summarise(result(SPEC, [0.1, -3.0, 0.2, 0.0, 2.0, 0.1]))
    assert [top["site"] for top in summary["top_sites"]][:3] == ["L0H1", "L1H1", "L0H2"]
    assert (summary["n_sites"], summary["metric"], summary["unit"], summary["n"]) == (6, "loss", "nats", 60)


def test_a_selftest_has_a_summary_and_is_never_sent() -> None:
    checks = (Check(name="a", about="b", passed=True), Check(name="c", about="d", passed=False))
    made = SelfTestResult(checks=checks, coverage=result(SPEC).coverage)
    assert summarise(made) == {"kind": "selftest", "n_checks": 2, "failed": ["c"]}
    with pytest.raises(ValidationError):
        SubmissionPayload.model_validate({**sent().model_dump(mode="json"), "result_full": made.model_dump(mode="json")})


@pytest.mark.parametrize("field", ["is_admin", "result_fulll"])
def test_unknown_fields_are_refused(field: str) -> None:
    with pytest.raises(ValidationError):
        SubmissionPayload.model_validate({**sent().model_dump(mode="json"), field: 1})


def test_numbers_that_are_none_are_refused() -> None:
    values = sent().model_dump(mode="json")
    values["result_full"]["effects"]["estimate"][0] = float("nan")
    with pytest.raises(ValidationError):
        SubmissionPayload.model_validate(values)


def test_telemetry_comes_back_as_it_was() -> None:
    telemetry = {"schema_version": 1, "layers": [{"norm": 1.25}]}
    assert read_telemetry(telemetry_bytes(pack_telemetry(telemetry))) == telemetry


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("!!!!", "bad_telemetry"),
        (base64.b64encode(b"not zlib").decode(), "bad_telemetry"),
        (base64.b64encode(zlib.compress(b"[1]")).decode(), "bad_telemetry"),
        (base64.b64encode(zlib.compress(b'{"a": NaN}')).decode(), "bad_telemetry"),
        (base64.b64encode(zlib.compress(b"{}")[:-1]).decode(), "bad_telemetry"),
        (base64.b64encode(zlib.compress(b"{}") + b"more").decode(), "bad_telemetry"),
        (base64.b64encode(zlib.compress(b" " * (MAX_INFLATED_BYTES + 1))).decode(), "bad_telemetry"),
        (base64.b64encode(bytes(600 * 1024)).decode(), "telemetry_too_large"),
    ],
)
def test_bad_telemetry_is_refused_with_a_reason(data: str, reason: str) -> None:
    with pytest.raises(SubmissionRefused) as refused:
        telemetry_bytes(data)
    assert refused.value.reason == reason


def test_telemetry_that_is_too_large_is_not_sent() -> None:
    with pytest.raises(SubmissionRefused, match="without telemetry"):
        pack_telemetry({"blob": "x" * (MAX_INFLATED_BYTES + 1)})


def test_evidence_imports_without_torch_and_the_database() -> None:
    code = (
        "import sys, engine.evidence.finding, engine.evidence.validation, engine.evidence.submission;"
        "print([name for name in ('torch', 'transformers', 'sqlalchemy', 'streamlit') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
