"""What a contributor sends: the result of one shard, where it came from, and optional telemetry."""

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from typing import Annotated, Any, cast
from uuid import UUID

from pydantic import Field, JsonValue, field_validator
from pydantic_core import from_json

from engine.errors import SubmissionRefused
from engine.provenance import Hardware, Provenance
from engine.result import AblationResult, AnyResult
from engine.spec.any import CUSTOM
from engine.spec.base import Frozen, Sha256

MAX_BODY_BYTES = 2 * 1024 * 1024
MAX_TELEMETRY_BYTES = 512 * 1024
MAX_INFLATED_BYTES = 8 * 1024 * 1024
MAX_DURATION_S = 7 * 24 * 3600
TOP_SITES = 10

# base64 writes 3 bytes as 4 letters
_MAX_TELEMETRY_LETTERS = 4 * (MAX_TELEMETRY_BYTES // 3 + 1)


class SubmissionMetadata(Frozen):
    """How and where the run was made."""

    spec_hash: Annotated[Sha256, Field(description="Hash of the task's spec; the shard's own is in the provenance.")]
    preset: Annotated[str | None, Field(max_length=64, description="Preset the run was started with.")] = None
    hardware: Annotated[Hardware, Field(description="The machine, without anything that names its owner.")]
    duration_seconds: Annotated[float, Field(ge=0, le=MAX_DURATION_S, description="How long the run took; shown, never counted.")]
    provenance: Annotated[Provenance, Field(description="Hashes and versions of everything that was used.")]


class SubmissionPayload(Frozen):
    """The body of a submission."""

    task_id: UUID
    lease_id: Annotated[UUID | None, Field(description="Lease of the shard; the live one on this task when left out.")] = None
    result_summary: Annotated[
        dict[str, JsonValue],
        Field(default_factory=dict, max_length=100, description="Short form of the result; the instance makes its own from result_full."),
    ]
    result_full: Annotated[AblationResult, Field(description="The whole result of the shard.")]
    telemetry_data: Annotated[
        str | None, Field(max_length=_MAX_TELEMETRY_LETTERS, description="Telemetry as base64 of zlib of a JSON object.")
    ] = None
    metadata: SubmissionMetadata

    @field_validator("result_full", mode="before")
    @classmethod
    def _no_own_code(cls, value: object) -> object:
        if _kind(value) == CUSTOM:
            raise ValueError("a run of somebody's own code is local and cannot be sent; send a run of the task's spec")
        return value


def _kind(value: object) -> object:
    return cast("dict[str, object]", value).get("kind") if isinstance(value, dict) else None


def payload_for(
    result: AblationResult,
    provenance: Provenance,
    *,
    task_id: UUID,
    lease_id: UUID | None,
    task_spec_hash: str,
    telemetry: Mapping[str, Any] | None = None,
) -> SubmissionPayload:
    """The submission of a finished run.

    Args:
        result: what the run found.
        provenance: where it came from; its duration is set, for the run is finished.
        task_id: task that the run answers.
        lease_id: lease of the shard.
        task_spec_hash: the task's `spec_hash`.
        telemetry: JSON-ready telemetry, if it was measured.
    """
    return SubmissionPayload(
        task_id=task_id,
        lease_id=lease_id,
        result_summary=summarise(result),
        result_full=result,
        telemetry_data=pack_telemetry(telemetry) if telemetry else None,
        metadata=SubmissionMetadata(
            spec_hash=task_spec_hash,
            preset=provenance.preset,
            hardware=provenance.hardware,
            duration_seconds=provenance.duration_s or 0.0,
            provenance=provenance,
        ),
    )


def summarise(result: AnyResult) -> dict[str, Any]:
    """The short form of a result as JSON-ready values: the clean metric and the largest effects, or how the checks came out."""
    if isinstance(result, AblationResult):
        return _largest_effects(result)
    return {"kind": result.kind, "n_checks": len(result.checks), "failed": [check.name for check in result.failed]}


def _largest_effects(result: AblationResult) -> dict[str, Any]:
    effects = result.effects
    order = sorted(range(len(effects.sites)), key=lambda index: (-abs(effects.estimate[index]), index))
    return {
        "kind": result.kind,
        "metric": effects.metric,
        "unit": effects.unit,
        "n": effects.n,
        "n_sites": len(effects.sites),
        "clean": result.clean.model_dump(mode="json"),
        "top_sites": [
            {
                "site": effects.sites[index].label,
                "hook_name": effects.sites[index].hook_name,
                "layer": effects.sites[index].layer,
                "head": effects.sites[index].head,
                "effect": effects.estimate[index],
                "se": effects.se[index],
                "low": effects.low[index],
                "high": effects.high[index],
            }
            for index in order[:TOP_SITES]
        ],
    }


def pack_telemetry(telemetry: Mapping[str, Any]) -> str:
    """Telemetry as it travels: base64 of zlib of JSON.

    Raises:
        SubmissionRefused: it is larger than an instance accepts.
    """
    plain = json.dumps(telemetry, allow_nan=False, separators=(",", ":")).encode()
    packed = zlib.compress(plain, level=9)
    if len(plain) > MAX_INFLATED_BYTES or len(packed) > MAX_TELEMETRY_BYTES:
        raise _too_large(len(packed))
    return base64.b64encode(packed).decode()


def telemetry_bytes(telemetry_data: str) -> bytes:
    """The compressed bytes of a submission's telemetry, after checking that they hold a JSON object within the limits.

    Raises:
        SubmissionRefused: not base64, not zlib, not a JSON object, or too large; a bomb is stopped at the limit.
    """
    try:
        packed = base64.b64decode(telemetry_data, validate=True)
    except binascii.Error as wrong:
        raise _bad_telemetry("it is not base64") from wrong
    if len(packed) > MAX_TELEMETRY_BYTES:
        raise _too_large(len(packed))
    read_telemetry(packed)
    return packed


def read_telemetry(packed: bytes) -> dict[str, Any]:
    """The telemetry in compressed bytes.

    Raises:
        SubmissionRefused: not zlib, not a JSON object, or larger than 8 MiB inflated.
    """
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(packed, MAX_INFLATED_BYTES)
    except zlib.error as wrong:
        raise _bad_telemetry("it is not zlib data") from wrong
    if not inflater.eof or inflater.unused_data:
        reason = "it inflates to more than 8 MiB" if inflater.unconsumed_tail else "its zlib data is cut off or followed by something else"
        raise _bad_telemetry(reason)
    try:
        telemetry = from_json(plain, allow_inf_nan=False)
    except ValueError as wrong:
        raise _bad_telemetry("it is not JSON") from wrong
    if not isinstance(telemetry, dict):
        raise _bad_telemetry("it is not a JSON object")
    return cast("dict[str, Any]", telemetry)


def _too_large(size: int) -> SubmissionRefused:
    return SubmissionRefused(
        f"the telemetry has {size} bytes compressed; expected at most {MAX_TELEMETRY_BYTES}, and {MAX_INFLATED_BYTES} inflated.",
        reason="telemetry_too_large",
        next_step="Send the run without telemetry.",
    )


def _bad_telemetry(fault: str) -> SubmissionRefused:
    return SubmissionRefused(
        f"the telemetry cannot be read: {fault}; expected base64 of zlib of a JSON object.",
        reason="bad_telemetry",
        next_step="Send the run without telemetry, or pack it again.",
    )
