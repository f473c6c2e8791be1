"""Made-up answers of contributors, for tests of what happens to answers. No model runs here; the numbers are drawn by seed."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import numpy as np
from sqlalchemy.orm import Session

from db.contributors import register
from db.leases import Lease, lease_next
from db.submissions import Submission, submit
from db.tasks import TaskDetail, create_task, draft_from
from db.viewer import Viewer
from engine.evidence.submission import SubmissionPayload, payload_for
from engine.evidence.validation import expected_rows, expected_sites
from engine.provenance import Hardware, Provenance
from engine.result import AblationResult, Coverage, Effects, Estimate
from engine.spec import AblationSpec

LAYERS, HEADS = 2, 3
FINGERPRINT = "f" * 64
SPEC = AblationSpec.model_validate(
    {"model": {"id": "planted-induction"}, "dataset": {"name": "planted_induction", "rows": {"start": 0, "stop": 60}}, "metric": "loss"}
)


def hardware(name: str = "x86_64") -> Hardware:
    return Hardware(device="cpu", name="a processor", cores=2, memory_gb=4.0, system=f"Linux {name}")


def provenance(spec: AblationSpec, dataset_hash: str, **changes: Any) -> Provenance:
    plain = Provenance(
        spec_sha256=spec.sha256,
        question_sha256=spec.question_sha256,
        model_fingerprint=FINGERPRINT,
        dataset_sha256=dataset_hash,
        engine_version="0.1.0",
        versions={"python": "3.11"},
        hardware=hardware(),
        started_at=datetime.now(UTC),
        duration_s=0.5,
    )
    return plain.model_copy(update=changes)


def made_effects(spec: AblationSpec, *, seed: int = 0) -> list[float]:
    """Effects of a shard: one strong head, the others near nothing; the same seed and rows give the same numbers."""
    start = spec.dataset.rows.start if spec.dataset.rows else 0
    draw = np.random.default_rng([seed, start])
    size = len(expected_sites(spec, n_layers=LAYERS, n_heads=HEADS))
    return [float(value) for value in np.where(np.arange(size) == 1, 1.0, 0.0) + 0.01 * draw.normal(size=size)]


def result(spec: AblationSpec, estimate: Sequence[float] | None = None, *, se: float = 0.01, layers: int = LAYERS) -> AblationResult:
    sites = expected_sites(spec, n_layers=layers, n_heads=HEADS)
    values = tuple(estimate if estimate is not None else made_effects(spec))
    rows = expected_rows(spec) or 10
    effects = Effects(
        metric=spec.metric,
        unit=spec.unit,
        sites=sites,
        estimate=values,
        se=(se,) * len(sites),
        low=tuple(value - 2 * se for value in values),
        high=tuple(value + 2 * se for value in values),
        n=rows,
    )
    coverage = Coverage(rows=rows, rows_available=rows, layers=layers, layers_available=layers, heads=HEADS, heads_available=HEADS)
    return AblationResult(clean=Estimate(mean=2.0, se=0.1, low=1.8, high=2.2, n=rows), effects=effects, coverage=coverage)


def payload(
    spec: AblationSpec,
    *,
    task_id: UUID,
    task_spec_hash: str,
    dataset_hash: str,
    lease_id: UUID | None = None,
    estimate: Sequence[float] | None = None,
    telemetry: dict[str, Any] | None = None,
    **changes: Any,
) -> SubmissionPayload:
    """The submission of a shard whose spec (rows included) is given; `changes` go to its provenance."""
    return payload_for(
        result(spec, estimate),
        provenance(spec, dataset_hash, **changes),
        task_id=task_id,
        lease_id=lease_id,
        task_spec_hash=task_spec_hash,
        telemetry=telemetry,
    )


PEPPER = b"pepper of the tests"


def join(session: Session, username: str) -> Viewer:
    """A new contributor."""
    made = register(session, username=username, email=f"{username}@example.org", pepper=PEPPER)
    return Viewer(contributor_id=made.contributor_id, role="contributor")


def make_task(session: Session, viewer: Viewer, **changes: Any) -> TaskDetail:
    """A task of 6 shards of 10 rows with 2 replicas each, unless said otherwise."""
    plain = {"name": "Induction heads", "spec": SPEC.model_dump(mode="json"), "n_shards": 6, "replicas": 2, "delta": 0.05}
    return create_task(session, viewer, draft_from({**plain, **changes}))


def answer_for(lease: Lease, **changes: Any) -> SubmissionPayload:
    """What somebody who holds this shard would send."""
    return payload(
        lease.spec,
        task_id=lease.task_id,
        task_spec_hash=lease.task_spec_hash,
        dataset_hash=lease.dataset_hash,
        lease_id=lease.id,
        **changes,
    )


def send(session: Session, viewer: Viewer, sent: SubmissionPayload, *, key: str | None = None) -> Submission:
    """Sends it, under a key of its own unless one is given."""
    return submit(session, viewer, sent, idempotency_key=key or uuid4().hex, raw=sent.model_dump_json().encode())


def lease_shard(session: Session, viewer: Viewer, task_id: UUID | None = None) -> Lease:
    """The next shard, which there must be."""
    lease = lease_next(session, viewer, task_id)
    assert lease is not None
    return lease


def fill(session: Session, people: Sequence[Viewer], task_id: UUID, **changes: Any) -> int:
    """Everybody answers what there is to answer, in turn; says how many runs were sent."""
    sent = 0
    while True:
        before = sent
        for person in people:
            lease = lease_next(session, person, task_id)
            if lease is not None:
                send(session, person, answer_for(lease, **changes))
                sent += 1
        if sent == before:
            return sent
