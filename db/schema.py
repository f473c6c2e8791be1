"""The whole database at a glance. Postgres keeps the promises: every rule that can be a constraint is one.

All ids are UUIDv7 made in Python, all times are timestamptz, all JSON is jsonb. Views `manifests` and `results` keep the names of
earlier systems; they, the audit trigger and the job queue's own schema `jobs` are made in the migrations.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

import uuid_utils.compat
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Json = dict[str, Any]

ROLES = ("contributor", "reviewer", "admin")
CONTRIBUTOR_STATUSES = ("active", "suspended", "erased")
RUN_STATUSES = ("queued", "running", "ok", "failed", "cancelled")
VISIBILITIES = ("private", "unlisted", "public")
TASK_STATUSES = ("draft", "open", "in_progress", "completed", "archived")
UNIT_STATUSES = ("open", "satisfied", "nondeterministic", "exhausted", "cancelled")
LEASE_STATES = ("leased", "submitted", "expired", "released")
VERDICTS = ("waiting", "accepted", "refused")
FINDING_STATUSES = ("unverified", "candidate", "supported", "replicated", "contested", "null", "withdrawn")


def one_of(column: str, values: tuple[str, ...]) -> str:
    """SQL that holds a column to a closed list."""
    return f"{column} in ({', '.join(repr(value) for value in values)})"


class Table(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012
        datetime: DateTime(timezone=True),
        Json: JSONB(none_as_null=True),
        str: Text,
        float: Double,
        list[str]: ARRAY(Text),
        list[float]: ARRAY(Double),
        bytes: LargeBinary,
    }


def new_id() -> UUID:
    """A fresh UUIDv7: unique everywhere, and sorted by the time it was made."""
    return uuid_utils.compat.uuid7()


class Contributor(Table):
    """A person. What they have done is counted from submissions, never stored here."""

    __tablename__ = "contributors"
    __table_args__ = (
        CheckConstraint(one_of("role", ROLES), name="role"),
        CheckConstraint(one_of("status", CONTRIBUTOR_STATUSES), name="status"),
        Index("uq_contributors_username", text("lower(username)"), unique=True),
        Index("uq_contributors_email", text("lower(email)"), unique=True),
    )
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    username: Mapped[str] = mapped_column(String(64))
    email: Mapped[str | None] = mapped_column(String(254))  # never shown to others
    role: Mapped[str] = mapped_column(server_default="contributor")
    status: Mapped[str] = mapped_column(server_default="active")
    tags: Mapped[list[str]] = mapped_column(server_default=text("'{}'"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ApiKey(Table):
    """A key of a person: the public prefix and an HMAC of the secret, never the secret."""

    __tablename__ = "api_keys"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    contributor_id: Mapped[UUID] = mapped_column(ForeignKey("contributors.id", ondelete="CASCADE"), index=True)
    prefix: Mapped[str] = mapped_column(String(16), unique=True)
    secret_hmac: Mapped[bytes]
    name: Mapped[str] = mapped_column(String(100), server_default="default")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class Task(Table):
    """A prompt card: a spec that the community repeats over shards × replicas. Frozen once it is open."""

    __tablename__ = "tasks"
    __table_args__ = (
        CheckConstraint(one_of("status", TASK_STATUSES), name="status"),
        CheckConstraint("n_shards between 1 and 10000", name="n_shards"),
        CheckConstraint("replicas between 1 and 20", name="replicas"),
        CheckConstraint("delta >= 0", name="delta"),
        Index("ix_tasks_status_priority", "status", text("priority desc")),
    )
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(200))
    description: Mapped[str] = mapped_column(server_default="")
    hypothesis: Mapped[str] = mapped_column(server_default="")
    spec: Mapped[Json]
    spec_yaml: Mapped[str]
    spec_hash: Mapped[str] = mapped_column(String(64))  # Spec.sha256 of `spec`
    question_sha256: Mapped[str] = mapped_column(String(64))  # the same for all shards
    dataset_name: Mapped[str]
    dataset_hash: Mapped[str] = mapped_column(String(64))
    model_id: Mapped[str]
    metric: Mapped[str]
    delta: Mapped[float] = mapped_column(server_default="0")  # smallest effect of interest, in the metric's unit
    n_shards: Mapped[int]
    shard_size: Mapped[int]
    replicas: Mapped[int]
    max_attempts: Mapped[int] = mapped_column(server_default="6")  # replicas tried per shard before it is given up
    tolerance: Mapped[float] = mapped_column(server_default="0.02")  # replicas agree within this many standard errors
    lease_ttl_s: Mapped[int] = mapped_column(server_default="3600")
    priority: Mapped[int] = mapped_column(server_default="0")
    status: Mapped[str] = mapped_column(server_default="open")
    tags: Mapped[list[str]] = mapped_column(server_default=text("'{}'"))
    created_by: Mapped[UUID | None] = mapped_column(ForeignKey("contributors.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WorkUnit(Table):
    """One shard of a task: the rows that one run covers, and how many replicas are still wanted."""

    __tablename__ = "work_units"
    __table_args__ = (
        UniqueConstraint("task_id", "shard_no"),
        CheckConstraint(one_of("status", UNIT_STATUSES), name="status"),
        CheckConstraint("n_open >= 0", name="n_open"),
        Index("ix_work_units_claim", "task_id", "shuffle", postgresql_where=text("status = 'open' and n_open > 0")),
    )
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"))
    shard_no: Mapped[int]
    row_start: Mapped[int]
    row_stop: Mapped[int]
    spec_sha256: Mapped[str] = mapped_column(String(64))  # of the task's spec with these rows
    status: Mapped[str] = mapped_column(server_default="open")
    n_open: Mapped[int]  # replicas that may still be leased
    shuffle: Mapped[float] = mapped_column(server_default=func.random())  # nobody chooses a shard


class Lease(Table):
    """The right of one person to answer one shard until `expires_at`; `fence` orders leases in time."""

    __tablename__ = "leases"
    __table_args__ = (
        CheckConstraint(one_of("state", LEASE_STATES), name="state"),
        Index("uq_leases_live", "work_unit_id", "contributor_id", unique=True, postgresql_where=text("state = 'leased'")),
        Index("ix_leases_expiry", "expires_at", postgresql_where=text("state = 'leased'")),
        Index("ix_leases_contributor_id", "contributor_id"),
    )
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    work_unit_id: Mapped[UUID] = mapped_column(ForeignKey("work_units.id", ondelete="CASCADE"))
    contributor_id: Mapped[UUID] = mapped_column(ForeignKey("contributors.id", ondelete="CASCADE"))
    fence: Mapped[int] = mapped_column(BigInteger, Identity(always=True))
    state: Mapped[str] = mapped_column(server_default="leased")
    leased_at: Mapped[datetime] = mapped_column(server_default=func.now())
    heartbeat_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]


class Run(Table):
    """One execution of a spec, wherever it happened."""

    __tablename__ = "runs"
    __table_args__ = (
        CheckConstraint(one_of("status", RUN_STATUSES), name="status"),
        CheckConstraint(one_of("visibility", VISIBILITIES), name="visibility"),
        CheckConstraint("progress between 0 and 1", name="progress"),
        CheckConstraint("(status = 'ok') = (result is not null)", name="result_when_ok"),
        Index("ix_runs_created_at", text("created_at desc"), text("id desc")),
        Index("ix_runs_owner_id", "owner_id", text("created_at desc")),
        Index("ix_runs_task_id", "task_id"),
    )
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    owner_id: Mapped[UUID | None] = mapped_column(ForeignKey("contributors.id", ondelete="SET NULL"))
    visibility: Mapped[str] = mapped_column(server_default="private")
    kind: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(200), server_default="")
    status: Mapped[str] = mapped_column(server_default="queued")
    spec: Mapped[Json]
    spec_sha256: Mapped[str] = mapped_column(String(64), index=True)
    question_sha256: Mapped[str] = mapped_column(String(64))
    preset: Mapped[str | None]
    task_id: Mapped[UUID | None] = mapped_column(ForeignKey("tasks.id", ondelete="SET NULL"))
    lease_id: Mapped[UUID | None] = mapped_column(ForeignKey("leases.id", ondelete="SET NULL"))  # submit when ok
    job_id: Mapped[int | None] = mapped_column(BigInteger)  # the queue's job that executes it
    attempt: Mapped[int] = mapped_column(server_default="0")  # fences what a stale worker may still write
    progress: Mapped[float] = mapped_column(server_default="0")
    progress_message: Mapped[str] = mapped_column(server_default="")
    cancel_requested: Mapped[bool] = mapped_column(server_default=text("false"))
    provenance: Mapped[Json | None]
    result: Mapped[Json | None]
    error: Mapped[str | None]
    traceback: Mapped[str | None]
    state_sha256: Mapped[str | None] = mapped_column(String(64), index=True)  # what was measured when it stopped, in the store
    tags: Mapped[list[str]] = mapped_column(server_default=text("'{}'"))
    note: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class RunMetric(Table):
    """One point of a curve of a run."""

    __tablename__ = "run_metrics"
    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    value: Mapped[float]
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class RunItem(Table):
    """One row of a run's per-prompt table."""

    __tablename__ = "run_items"
    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    position: Mapped[int]
    values: Mapped[Json]


class RunPayload(Table):
    """A larger body that belongs to a run: `summary`, `full`, `telemetry` of a submission. Kept out of `runs` so that lists stay fast."""

    __tablename__ = "run_payloads"
    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    body: Mapped[Json | None]
    data: Mapped[bytes | None]  # compressed telemetry, as it was received


class Artifact(Table):
    """A file of a run: its name there, and its hash in the store."""

    __tablename__ = "artifacts"
    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(120), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    media_type: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Submission(Table):
    """A run that was offered to a task, with the verdict on it. One vote per person and shard."""

    __tablename__ = "submissions"
    __table_args__ = (
        UniqueConstraint("contributor_id", "idempotency_key"),
        CheckConstraint(one_of("verdict", VERDICTS), name="verdict"),
        CheckConstraint("(verdict = 'refused') = (reason is not null)", name="reason_when_refused"),
        CheckConstraint("cardinality(estimate) = cardinality(se)", name="equal_lengths"),
        CheckConstraint("duration_s between 0 and 604800", name="duration_s"),
        Index("uq_submissions_one_vote", "work_unit_id", "contributor_id", unique=True, postgresql_where=text("verdict <> 'refused'")),
        Index("ix_submissions_task_id", "task_id", "verdict"),
        Index("ix_submissions_contributor_id", "contributor_id", text("submitted_at desc")),
    )
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id", ondelete="RESTRICT"), unique=True)
    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="RESTRICT"))
    work_unit_id: Mapped[UUID] = mapped_column(ForeignKey("work_units.id", ondelete="RESTRICT"))
    lease_id: Mapped[UUID | None] = mapped_column(ForeignKey("leases.id", ondelete="SET NULL"))
    contributor_id: Mapped[UUID] = mapped_column(ForeignKey("contributors.id", ondelete="RESTRICT"))
    idempotency_key: Mapped[str] = mapped_column(String(200))
    payload_sha256: Mapped[str] = mapped_column(String(64))
    verdict: Mapped[str] = mapped_column(server_default="waiting")
    reason: Mapped[str | None] = mapped_column(String(64))  # reason code: late, duplicate, withdrawn, spec_mismatch, disagrees, ...
    validation_notes: Mapped[str] = mapped_column(server_default="")
    preset_used: Mapped[str | None]
    hardware: Mapped[Json]
    hardware_class: Mapped[str]
    dtype: Mapped[str]
    engine_version: Mapped[str]
    model_fingerprint: Mapped[str] = mapped_column(String(64))
    dataset_sha256: Mapped[str] = mapped_column(String(64))
    spec_sha256: Mapped[str] = mapped_column(String(64))
    duration_s: Mapped[float]  # as told by the contributor; shown, never counted
    credited_s: Mapped[float]  # at most the time between lease and arrival, by the server's clock
    metric: Mapped[str]
    estimate: Mapped[list[float]]
    se: Mapped[list[float]]
    n: Mapped[int]
    submitted_at: Mapped[datetime] = mapped_column(server_default=func.now())
    validated_at: Mapped[datetime | None]


class Finding(Table):
    """An effect pooled over the accepted shards of a task. `valid_to` is null for what holds now; older rows are history."""

    __tablename__ = "findings"
    __table_args__ = (
        CheckConstraint(one_of("status", FINDING_STATUSES), name="status"),
        CheckConstraint("confidence between 0 and 1", name="confidence"),
        Index("uq_findings_current", "task_id", "metric", "site_no", unique=True, postgresql_where=text("valid_to is null")),
    )
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"))
    finding_type: Mapped[str] = mapped_column(String(64))
    metric: Mapped[str]
    unit: Mapped[str]
    site_no: Mapped[int]
    site: Mapped[Json]
    status: Mapped[str]
    status_reason: Mapped[str] = mapped_column(server_default="")  # why it is not one step higher
    description: Mapped[str]
    estimate: Mapped[float | None]
    se: Mapped[float | None]
    ci_low: Mapped[float | None]
    ci_high: Mapped[float | None]
    next_low: Mapped[float | None]
    next_high: Mapped[float | None]
    tau: Mapped[float | None]
    i2: Mapped[float | None]
    p: Mapped[float | None]
    q: Mapped[float | None]
    confidence: Mapped[float | None]
    sign_agreement: Mapped[float | None]
    loo_low: Mapped[float | None]
    loo_high: Mapped[float | None]
    k_shards: Mapped[int]
    n_contributors: Mapped[int]
    n_classes: Mapped[int]
    supporting_runs: Mapped[int]
    data: Mapped[Json]  # per-shard effects, and the submissions behind them
    method_version: Mapped[int]
    inputs_hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    valid_to: Mapped[datetime | None]


class Audit(Table):
    """Who did what, when. Append-only by trigger; each row carries the hash of the one before it."""

    __tablename__ = "audit"
    seq: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    actor_id: Mapped[UUID | None]
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(200), index=True)
    data: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    prev_hash: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64), unique=True)


class RateBucket(Table):
    """State of the rate limiter (GCRA): the theoretical arrival time of the next request of a key."""

    __tablename__ = "rate_buckets"
    __table_args__ = ({"prefixes": ["UNLOGGED"]},)
    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    tat: Mapped[datetime]
