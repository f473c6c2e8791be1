"""What people send: kept once, judged against the other replicas of its shard, and never counted twice."""

import hashlib
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import audit, findings, schema
from db.leases import locked_unit
from db.schema import Lease, Run, RunPayload, Task, WorkUnit
from db.submission_views import Submission, get_submission
from db.tasks import task_spec
from db.verdicts import complete, judge, refuse, shape_of, take_slot
from db.viewer import Viewer
from engine.errors import Conflict, NotAllowed, NotFound, SubmissionRefused
from engine.evidence.submission import SubmissionPayload, payload_for, read_telemetry, summarise, telemetry_bytes
from engine.evidence.validation import Expected, ModelShape, answer, check, in_order
from engine.provenance import Provenance
from engine.result import AblationResult
from engine.spec import TaskSpec
from engine.spec.any import CUSTOM
from engine.spec.base import Rows

MAX_KEY_LENGTH = 200


def submit(session: Session, viewer: Viewer, payload: SubmissionPayload, *, idempotency_key: str, raw: bytes) -> Submission:
    """Keeps a submission and judges its shard. Sending makes the run public.

    The same key with the same body gives the same submission again and changes nothing.

    Args:
        session: the caller's transaction; an answer may be given only after its commit.
        viewer: who sends.
        payload: what is sent.
        idempotency_key: made by the client when the result was complete.
        raw: the body as it was received.

    Raises:
        NotAllowed: visitors send nothing.
        NotFound: there is no such task or lease of theirs.
        SubmissionRefused: it cannot count; nothing was kept.
    """
    person = _person(viewer)
    digest = _checked_key(idempotency_key, raw)
    before = _replayed(session, person, idempotency_key, digest)
    if before is not None:
        return get_submission(session, viewer, before)
    telemetry = telemetry_bytes(payload.telemetry_data) if payload.telemetry_data else None
    task, lease, unit = _locked(session, person, payload)
    _check(session, payload, task=task, lease=lease, unit=unit)
    run = _new_run(payload, task=task, lease=lease, unit=unit, person=person)
    session.add(run)
    session.flush()
    _keep_payloads(session, run.id, payload.result_full, telemetry)
    kept = _keep(session, payload, run=run, task=task, lease=lease, unit=unit, key=idempotency_key, digest=digest)
    return get_submission(session, viewer, kept)


def replay(session: Session, viewer: Viewer, *, idempotency_key: str, raw: bytes) -> Submission | None:
    """The submission that this key and body gave before; None when they are new.

    Raises:
        NotAllowed: visitors send nothing.
        SubmissionRefused: the key was used with another body.
    """
    before = _replayed(session, _person(viewer), idempotency_key, _checked_key(idempotency_key, raw))
    return None if before is None else get_submission(session, viewer, before)


def submit_run(session: Session, viewer: Viewer, run_id: UUID) -> Submission:
    """Submits a finished run of this lab to the task whose shard it answers, and makes it public. Doing it twice changes nothing.

    Raises:
        NotFound: the viewer has no such run.
        Conflict: the run is not finished, or answers no shard of a task.
        SubmissionRefused: it cannot count.
    """
    person = _person(viewer)
    run = session.scalar(select(Run).where(Run.id == run_id, Run.owner_id == person).with_for_update())
    if run is None:
        raise NotFound(f"you have no run {run_id}.")
    before = session.scalar(select(schema.Submission.id).where(schema.Submission.run_id == run_id))
    if before is not None:
        return get_submission(session, viewer, before)
    payload = _payload_of(session, run)
    task, lease, unit = _locked(session, person, payload)
    _check(session, payload, task=task, lease=lease, unit=unit)
    run.visibility = "public"
    _keep_payloads(session, run.id, payload.result_full, None)
    digest = hashlib.sha256(payload.model_dump_json().encode()).hexdigest()
    kept = _keep(session, payload, run=run, task=task, lease=lease, unit=unit, key=f"run:{run.id}", digest=digest)
    return get_submission(session, viewer, kept)


def record_refusal(session: Session, viewer: Viewer, payload: SubmissionPayload, refused: SubmissionRefused) -> None:
    """Notes in the audit that a submission was turned away; called after the transaction that refused it was rolled back."""
    details = {"reason": refused.reason, "lease_id": str(payload.lease_id) if payload.lease_id else None}
    audit.record(session, viewer.contributor_id, "submission_refused", f"task:{payload.task_id}", details)


def _person(viewer: Viewer) -> UUID:
    if viewer.contributor_id is None or not viewer.can("submit"):
        raise NotAllowed("only contributors submit runs.", next_step="Register, and send your key.")
    return viewer.contributor_id


def _checked_key(key: str, raw: bytes) -> str:
    if not 1 <= len(key) <= MAX_KEY_LENGTH or not key.isprintable():
        raise SubmissionRefused(
            f"the idempotency key has {len(key)} characters; expected 1 to {MAX_KEY_LENGTH} printable ones.",
            reason="bad_idempotency_key",
            next_step="Use a UUID.",
        )
    return hashlib.sha256(raw).hexdigest()


def _replayed(session: Session, person: UUID, key: str, digest: str) -> UUID | None:
    """The submission that this key made before. Two requests with one key come here one after the other."""
    audit.key_lock(session, "submit", person, key)
    asked = select(schema.Submission.id, schema.Submission.payload_sha256)
    row = session.execute(asked.where(schema.Submission.contributor_id == person, schema.Submission.idempotency_key == key)).one_or_none()
    if row is not None and row.payload_sha256 != digest:
        raise SubmissionRefused(
            "this idempotency key was used with another body.", reason="key_reused", next_step="Make a new key for every result."
        )
    return row.id if row is not None else None


def _locked(session: Session, person: UUID, payload: SubmissionPayload) -> tuple[Task, Lease, WorkUnit]:
    """The task, the lease and its shard; the shard is locked first, as everywhere."""
    task = session.get(Task, payload.task_id)
    if task is None:
        raise NotFound(f"there is no task {payload.task_id}.", next_step="See the list of tasks.")
    lease_id = payload.lease_id or _only_lease(session, person, payload)
    lease = session.scalar(select(Lease).where(Lease.id == lease_id, Lease.contributor_id == person))
    if lease is None:
        raise NotFound(f"you have no lease {lease_id}.", next_step="Lease a shard of the task first.")
    unit = locked_unit(session, lease.work_unit_id)
    session.refresh(lease)
    task = session.get_one(Task, unit.task_id)
    _refuse_second_vote(session, person, unit)
    return task, lease, unit


def _only_lease(session: Session, person: UUID, payload: SubmissionPayload) -> UUID:
    """The newest lease of this person whose shard the run answers, for clients that do not name it."""
    found = session.scalar(
        select(Lease.id)
        .join(WorkUnit, WorkUnit.id == Lease.work_unit_id)
        .where(Lease.contributor_id == person, WorkUnit.task_id == payload.task_id)
        .where(WorkUnit.spec_sha256 == payload.metadata.provenance.spec_sha256)
        .order_by(Lease.fence.desc())
        .limit(1)
    )
    if found is None:
        raise SubmissionRefused(
            f"you hold no shard of task {payload.task_id} that this run answers.",
            reason="no_lease",
            next_step="Lease a shard with GET /api/platform/tasks/next, run its spec, and send that.",
        )
    return found


def _refuse_second_vote(session: Session, person: UUID, unit: WorkUnit) -> None:
    voted = select(schema.Submission.id).where(schema.Submission.work_unit_id == unit.id, schema.Submission.contributor_id == person)
    before = session.scalar(voted.where(schema.Submission.verdict != "refused"))
    if before is not None:
        raise SubmissionRefused(
            f"you answered shard {unit.shard_no} already, in submission {before}.", reason="duplicate", next_step="Ask for the next shard."
        )


def _check(session: Session, payload: SubmissionPayload, *, task: Task, lease: Lease, unit: WorkUnit) -> None:
    expected = Expected(
        task_id=str(task.id),
        spec=_unit_spec(task, unit),
        task_spec_hash=task.spec_hash,
        dataset_hash=task.dataset_hash,
        model=_accepted_model(session, task.id),
        lease_age_s=(datetime.now(UTC) - lease.leased_at).total_seconds(),
    )
    refusal = check(payload, expected)
    if refusal is not None:
        raise SubmissionRefused(
            f"the submission cannot count: {refusal.text}.", reason=refusal.reason, next_step="Run the spec of the lease as it is."
        )


def _unit_spec(task: Task, unit: WorkUnit) -> TaskSpec:
    return task_spec(task).with_rows(Rows(start=unit.row_start, stop=unit.row_stop))


def _accepted_model(session: Session, task_id: UUID) -> ModelShape | None:
    """What the task's first accepted run used: it binds all later ones."""
    row = session.execute(
        select(Run.provenance, Run.result["coverage"].label("coverage"))
        .join(schema.Submission, schema.Submission.run_id == Run.id)
        .where(schema.Submission.task_id == task_id, schema.Submission.verdict == "accepted")
        .order_by(schema.Submission.submitted_at)
        .limit(1)
    ).one_or_none()
    return None if row is None else shape_of(row.provenance, row.coverage)


def _new_run(payload: SubmissionPayload, *, task: Task, lease: Lease, unit: WorkUnit, person: UUID) -> Run:
    spec, result = _unit_spec(task, unit), payload.result_full
    ordered = result.model_copy(update={"effects": in_order(result.effects)})
    return Run(
        owner_id=person,
        visibility="public",
        kind=spec.kind,
        name=f"{task.name} · shard {unit.shard_no}"[:200],
        status="ok",
        spec=spec.model_dump(mode="json"),
        spec_sha256=spec.sha256,
        question_sha256=spec.question_sha256,
        preset=payload.metadata.preset,
        task_id=task.id,
        lease_id=lease.id,
        progress=1.0,
        provenance=payload.metadata.provenance.model_dump(mode="json"),
        result=ordered.model_dump(mode="json"),
        tags=task.tags,
        started_at=lease.leased_at,
        finished_at=datetime.now(UTC),
    )


def _payload_of(session: Session, run: Run) -> SubmissionPayload:
    if run.kind == CUSTOM:
        raise Conflict(
            "this run is of somebody's own code, which is local: it answers no task and cannot be sent.",
            next_step="Send a run of the task's spec.",
        )
    task = session.get(Task, run.task_id) if run.task_id else None
    if task is None or run.lease_id is None:
        raise Conflict("this run answers no shard of a task.", next_step="Start it from the task's page.")
    if run.status != "ok":
        raise Conflict(f"the run is {run.status}; only a finished run can be submitted.", next_step="Wait for it, or run it again.")
    telemetry = session.get(RunPayload, (run.id, "telemetry"))
    return payload_for(
        AblationResult.model_validate(run.result),
        Provenance.model_validate(run.provenance),
        task_id=task.id,
        lease_id=run.lease_id,
        task_spec_hash=task.spec_hash,
        telemetry=read_telemetry(telemetry.data) if telemetry is not None and telemetry.data else None,
    )


def _keep_payloads(session: Session, run_id: UUID, result: AblationResult, telemetry: bytes | None) -> None:
    session.merge(RunPayload(run_id=run_id, name="summary", body=summarise(result)))
    if telemetry is not None:
        session.add(RunPayload(run_id=run_id, name="telemetry", data=telemetry))
    session.flush()


def _keep(
    session: Session, payload: SubmissionPayload, *, run: Run, task: Task, lease: Lease, unit: WorkUnit, key: str, digest: str
) -> UUID:
    """Stores the submission, and judges its shard if it came in time."""
    in_time = take_slot(session, lease, unit)
    row = _row(payload, lease=lease, unit=unit, run=run)
    row.idempotency_key, row.payload_sha256 = key, digest
    if not in_time:
        refuse(row, "late")
    session.add(row)
    session.flush()
    closed = in_time and judge(session, task, unit)
    if closed:
        complete(session, task)
        findings.recompute(session, task.id)
    details = {"submission": str(row.id), "shard": unit.shard_no, "payload_sha256": digest, "verdict": row.verdict, "reason": row.reason}
    audit.record(session, row.contributor_id, "submission_received", f"task:{task.id}", details)
    return row.id


def _row(payload: SubmissionPayload, *, lease: Lease, unit: WorkUnit, run: Run) -> schema.Submission:
    metadata, given, now = payload.metadata, answer(payload), datetime.now(UTC)
    elapsed = max(0.0, (now - lease.leased_at).total_seconds())
    return schema.Submission(
        run_id=run.id,
        task_id=unit.task_id,
        work_unit_id=unit.id,
        lease_id=lease.id,
        contributor_id=lease.contributor_id,
        verdict="waiting",
        preset_used=metadata.preset,
        hardware=metadata.hardware.model_dump(mode="json"),
        hardware_class=metadata.hardware.hardware_class,
        dtype=_dtype(run),
        engine_version=metadata.provenance.engine_version,
        model_fingerprint=given.model.fingerprint,
        dataset_sha256=metadata.provenance.dataset_sha256,
        spec_sha256=metadata.provenance.spec_sha256,
        duration_s=metadata.duration_seconds,
        credited_s=min(metadata.duration_seconds, elapsed),
        metric=payload.result_full.effects.metric,
        estimate=list(given.estimate),
        se=list(given.se),
        n=given.n,
        submitted_at=now,
    )


def _dtype(run: Run) -> str:
    return str(run.spec["model"]["dtype"])
