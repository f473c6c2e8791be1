"""What is sent counts once or not at all, replicas decide, and every verdict has its reason."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from db import schema
from db.audit import broken_at
from db.connection import Database
from db.leases import expire_due, lease_next, release
from db.schema import Audit, Run, RunPayload, WorkUnit
from db.submission_views import SubmissionFilter, get_submission, list_submissions, stats
from db.submissions import record_refusal, replay, submit, submit_run
from db.tasks import get_task, set_status
from db.viewer import Viewer
from engine.errors import Conflict, NotAllowed, NotFound, SubmissionRefused
from tests.community import SPEC, answer_for, fill, hardware, join, lease_shard, made_effects, make_task, provenance, result, send
from tests.db.test_leases import age


@pytest.fixture
def people(session: Session) -> list[Viewer]:
    return [join(session, f"person-{number}") for number in range(8)]


def verdicts(session: Session) -> list[tuple[str, str | None]]:
    session.flush()
    rows = session.execute(select(schema.Submission.verdict, schema.Submission.reason).order_by(schema.Submission.id))
    return [(row.verdict, row.reason) for row in rows]


def vote(session: Session, person: Viewer, task_id: UUID, *, seed: int = 0, **changes: Any) -> Any:
    lease = lease_shard(session, person, task_id)
    return send(session, person, answer_for(lease, estimate=made_effects(lease.spec, seed=seed), **changes))


def test_the_first_replica_waits_and_the_second_decides(session: Session, people: list[Viewer]) -> None:
    task = make_task(session, people[0], n_shards=1)
    first = vote(session, people[0], task.id)
    assert (first.status, first.is_valid, first.reason) == ("waiting", True, None)
    second = vote(session, people[1], task.id)
    assert second.status == "accepted"
    assert get_submission(session, people[0], first.id).status == "accepted"
    card = get_task(session, people[0], task.id)
    assert (card.status, card.runs_completed, card.shards_done) == ("completed", 2, 1)


def test_submitting_makes_a_public_run_with_its_result(session: Session, people: list[Viewer]) -> None:
    task = make_task(session, people[0])
    sent = vote(session, people[0], task.id, telemetry={"schema_version": 1, "layers": [1.0]})
    run = session.get_one(Run, sent.run_id)
    assert (run.visibility, run.status, run.owner_id) == ("public", "ok", people[0].contributor_id)
    shown = get_submission(session, Viewer.visitor(), sent.id)
    assert shown.telemetry_data == {"schema_version": 1, "layers": [1.0]}
    assert shown.result_full == run.result
    assert shown.result_summary["top_sites"][0]["site"] == "L0H1"
    assert shown.provenance["model_fingerprint"] == "f" * 64


def test_the_same_key_and_body_give_the_same_submission(session: Session, people: list[Viewer]) -> None:
    make_task(session, people[0])
    sent = answer_for(lease_shard(session, people[0]))
    raw = sent.model_dump_json().encode()
    first = send(session, people[0], sent, key="once")
    again = send(session, people[0], sent, key="once")
    assert first.id == again.id
    assert session.scalar(select(func.count()).select_from(Run)) == 1
    known = replay(session, people[0], idempotency_key="once", raw=raw)
    assert known is not None
    assert known.id == first.id
    assert replay(session, people[1], idempotency_key="once", raw=raw) is None
    with pytest.raises(SubmissionRefused) as refused:
        submit(session, people[0], sent, idempotency_key="once", raw=raw + b" ")
    assert refused.value.reason == "key_reused"


def test_a_second_vote_is_refused(session: Session, people: list[Viewer]) -> None:
    make_task(session, people[0])
    sent = answer_for(lease_shard(session, people[0]))
    send(session, people[0], sent)
    with pytest.raises(SubmissionRefused) as refused:
        send(session, people[0], sent)
    assert refused.value.reason == "duplicate"


def test_a_disagreement_asks_a_third_person_and_the_majority_wins(session: Session, people: list[Viewer]) -> None:
    task = make_task(session, people[0], n_shards=1)
    vote(session, people[0], task.id)
    vote(session, people[1], task.id, seed=9)
    assert verdicts(session) == [("waiting", None), ("waiting", None)]
    assert session.scalars(select(WorkUnit)).one().n_open == 1
    vote(session, people[2], task.id)
    assert verdicts(session) == [("accepted", None), ("refused", "disagrees"), ("accepted", None)]
    assert lease_next(session, people[3], task.id) is None


def test_replicas_that_never_agree_give_the_shard_up(session: Session, people: list[Viewer]) -> None:
    task = make_task(session, people[0], n_shards=1, max_attempts=4)
    for number, person in enumerate(people[:4]):
        vote(session, person, task.id, seed=number)
    assert set(verdicts(session)) == {("refused", "nondeterministic")}
    assert session.scalars(select(WorkUnit)).one().status == "nondeterministic"
    card = get_task(session, people[0], task.id)
    assert (card.status, card.shards_failed, card.runs_completed) == ("completed", 1, 0)
    assert lease_next(session, people[4], task.id) is None


def test_two_camps_of_equal_size_decide_nothing(session: Session, people: list[Viewer]) -> None:
    task = make_task(session, people[0], n_shards=1, replicas=2, max_attempts=6)
    for person, seed in zip(people, (0, 1, 2, 1), strict=False):
        vote(session, person, task.id, seed=seed)
    assert {verdict for verdict, _ in verdicts(session)} == {"waiting"}
    vote(session, people[4], task.id, seed=1)
    assert [verdict for verdict, _ in verdicts(session)] == ["refused", "accepted", "refused", "accepted", "accepted"]


def test_other_weights_never_agree_and_are_refused_once_a_run_is_accepted(session: Session, people: list[Viewer]) -> None:
    task = make_task(session, people[0], n_shards=2)
    vote(session, people[0], task.id, model_fingerprint="0" * 64)
    fill(session, people[1:4], task.id)
    assert verdicts(session)[0] == ("refused", "disagrees")
    other = make_task(session, people[0], n_shards=2)
    fill(session, people[:1], other.id)
    lease = lease_shard(session, people[1], other.id)
    send(session, people[1], answer_for(lease))
    with pytest.raises(SubmissionRefused) as refused:
        vote(session, people[2], other.id, model_fingerprint="0" * 64)
    assert refused.value.reason == "model_mismatch"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task_spec_hash": "0" * 64}, "spec_mismatch"),
        ({"dataset_hash": "0" * 64}, "dataset_mismatch"),
        ({"duration_s": 7200.0}, "implausible_duration"),
        ({"spec_sha256": "0" * 64}, "spec_mismatch"),
        ({"hardware": hardware("arm64")}, None),
    ],
)
def test_what_cannot_count_is_not_kept(session: Session, people: list[Viewer], changes: dict[str, Any], reason: str | None) -> None:
    task = make_task(session, people[0])
    lease = lease_shard(session, people[0])
    spread = {"task_id": task.id, "task_spec_hash": task.spec_hash, "dataset_hash": task.dataset_hash, "lease_id": lease.id, **changes}
    from tests.community import payload

    sent = payload(lease.spec, **spread)
    if reason is None:
        assert send(session, people[0], sent).status == "waiting"
        return
    with pytest.raises(SubmissionRefused) as refused:
        send(session, people[0], sent)
    assert refused.value.reason == reason
    assert verdicts(session) == []
    assert session.scalars(select(Run)).first() is None
    record_refusal(session, people[0], sent, refused.value)
    assert session.scalars(select(Audit).where(Audit.action == "submission_refused")).one().data["reason"] == reason
    assert send(session, people[0], answer_for(lease)).status == "waiting"


def test_other_peoples_leases_and_unknown_things(session: Session, people: list[Viewer]) -> None:
    make_task(session, people[0])
    sent = answer_for(lease_shard(session, people[0]))
    with pytest.raises(NotFound):
        send(session, people[1], sent)
    with pytest.raises(NotFound):
        send(session, people[0], sent.model_copy(update={"task_id": uuid4()}))
    with pytest.raises(NotAllowed):
        send(session, Viewer.visitor(), sent)
    with pytest.raises(SubmissionRefused) as refused:
        send(session, people[0], sent, key="x" * 201)
    assert refused.value.reason == "bad_idempotency_key"


def test_a_client_that_names_no_lease_is_matched_by_its_shard(session: Session, people: list[Viewer]) -> None:
    make_task(session, people[0])
    sent = answer_for(lease_shard(session, people[0])).model_copy(update={"lease_id": None})
    with pytest.raises(SubmissionRefused) as refused:
        send(session, people[1], sent)
    assert refused.value.reason == "no_lease"
    assert send(session, people[0], sent).status == "waiting"


def test_a_late_answer_counts_while_nobody_took_the_place(session: Session, people: list[Viewer]) -> None:
    task = make_task(session, people[0], n_shards=1, replicas=1)
    lease = lease_shard(session, people[0])
    age(session, seconds=1)
    expire_due(session)
    assert send(session, people[0], answer_for(lease)).status == "accepted"
    assert get_task(session, people[0], task.id).status == "completed"


def test_a_late_answer_for_a_shard_that_is_taken_is_kept_but_does_not_count(session: Session, people: list[Viewer]) -> None:
    task = make_task(session, people[0], n_shards=1, replicas=1)
    lease = lease_shard(session, people[0])
    age(session, seconds=1)
    lease_shard(session, people[1])
    late = send(session, people[0], answer_for(lease))
    assert (late.status, late.reason, late.is_valid) == ("refused", "late", False)
    assert late.validation_notes
    assert vote(session, people[1], task.id).status == "accepted"
    assert get_task(session, people[0], task.id).runs_completed == 1


def test_a_released_shard_and_an_archived_task_count_no_more(session: Session, people: list[Viewer]) -> None:
    task = make_task(session, people[0], n_shards=1, replicas=1)
    lease = lease_shard(session, people[1])
    set_status(session, people[0], task.id, "archived")
    assert send(session, people[1], answer_for(lease)).reason == "late"
    other = make_task(session, people[0], n_shards=1, replicas=1)
    lease = lease_shard(session, people[1], other.id)
    release(session, people[1], lease.id)
    assert send(session, people[1], answer_for(lease)).status == "accepted"


def finished_run(session: Session, person: Viewer, lease: Any) -> UUID:
    """A run of this lab that answered the shard, as the worker leaves it."""
    run = Run(
        owner_id=person.contributor_id,
        kind="ablation",
        status="ok",
        spec=lease.spec.model_dump(mode="json"),
        spec_sha256=lease.spec_sha256,
        question_sha256=lease.spec.question_sha256,
        task_id=lease.task_id,
        lease_id=lease.id,
        provenance=provenance(lease.spec, lease.dataset_hash).model_dump(mode="json"),
        result=result(lease.spec).model_dump(mode="json"),
    )
    session.add(run)
    session.flush()
    return run.id


def test_a_run_of_this_lab_is_submitted_as_it_is(session: Session, people: list[Viewer]) -> None:
    task = make_task(session, people[0], n_shards=1, replicas=2)
    run_id = finished_run(session, people[0], lease_shard(session, people[0], task.id))
    sent = submit_run(session, people[0], run_id)
    assert sent.run_id == run_id
    assert submit_run(session, people[0], run_id).id == sent.id
    assert session.get_one(Run, run_id).visibility == "public"
    assert session.get_one(RunPayload, (run_id, "summary")).body
    assert vote(session, people[1], task.id).status == "accepted"
    with pytest.raises(NotFound):
        submit_run(session, people[1], run_id)


def test_only_a_finished_answer_to_a_shard_can_be_submitted(session: Session, people: list[Viewer]) -> None:
    make_task(session, people[0])
    run_id = finished_run(session, people[0], lease_shard(session, people[0]))
    session.execute(update(Run).values(lease_id=None))
    session.expire_all()
    with pytest.raises(Conflict, match="no shard"):
        submit_run(session, people[0], run_id)


def test_lists_filter_by_what_was_tested(session: Session, people: list[Viewer]) -> None:
    one = make_task(session, people[0], n_shards=1)
    two = make_task(session, people[0], n_shards=1, spec={**SPEC.model_dump(mode="json"), "layers": [1], "heads": [2]})
    fill(session, people[:2], one.id)
    lease = lease_shard(session, people[2], two.id)
    send(session, people[2], answer_for(lease))
    ask = lambda **wanted: len(list_submissions(session, Viewer.visitor(), SubmissionFilter(**wanted)))  # noqa: E731
    assert ask() == 3
    assert ask(task_id=one.id) == 2
    assert ask(contributor_id=people[2].contributor_id) == 1
    assert ask(status="accepted") == 2
    assert (ask(layer=0), ask(layer=1), ask(layer=1, head=2), ask(head=0), ask(layer=5)) == (2, 3, 3, 2, 0)
    assert len(list_submissions(session, Viewer.visitor(), limit=1, offset=2)) == 1
    assert list_submissions(session, Viewer.visitor(), offset=3) == []
    totals = stats(session)
    assert (totals.total_runs, totals.total_contributors, totals.active_tasks) == (2, 2, 1)


def test_everything_is_in_the_audit_and_its_chain_holds(session: Session, people: list[Viewer]) -> None:
    task = make_task(session, people[0], n_shards=1)
    fill(session, people[:2], task.id)
    actions = session.scalars(select(Audit.action).order_by(Audit.seq)).all()
    assert actions[-3:] == ["task_created", "submission_received", "submission_received"]
    assert broken_at(session) is None


def test_a_rewritten_audit_row_is_found(own_database: Database) -> None:
    with own_database.session() as session:
        join(session, "ada")
        join(session, "bob")
        join(session, "eve")
    with own_database.engine.begin() as connection:  # what an owner of the server could do behind the trigger's back
        connection.exec_driver_sql("alter table audit disable trigger all")
        connection.exec_driver_sql("update audit set action = 'nothing_happened' where seq = 2")
    with own_database.session() as session:
        assert broken_at(session) == 2


def test_one_request_sent_by_many_at_once_is_one_submission(own_database: Database) -> None:
    with own_database.session() as session:
        ada = join(session, "ada")
        make_task(session, ada)
        sent = answer_for(lease_shard(session, ada))

    def send_once(_: int) -> UUID:
        with own_database.session() as session:
            return send(session, ada, sent, key="the same").id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(send_once, range(16)))) == 1


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["lease", "send", "send_wrong", "release", "expire"])), max_size=40))
def test_no_order_of_events_breaks_the_books(session: Session, moves: list[tuple[int, str]]) -> None:
    """Whatever people do: one vote each per shard, and slots given out + slots open = slots there are."""
    with session.begin_nested() as savepoint:
        people = [join(session, f"p{uuid4().hex[:12]}") for _ in range(4)]
        task = make_task(session, people[0], n_shards=2, max_attempts=4)
        held: dict[int, Any] = {}
        for number, move in moves:
            person, lease = people[number], held.get(number)
            if move == "lease":
                held[number] = lease_next(session, person, task.id) or lease
            elif move == "expire":
                age(session, seconds=1)
                expire_due(session)
            elif lease is not None and move == "release":
                release(session, person, lease.id)
            elif lease is not None:
                seed = number + 1 if move == "send_wrong" else 0
                with suppress(SubmissionRefused):  # a second vote
                    send(session, person, answer_for(lease, estimate=made_effects(lease.spec, seed=seed)))
            check_books(session, task.id, replicas=2, max_attempts=4)
        savepoint.rollback()
    session.expire_all()


def check_books(session: Session, task_id: UUID, *, replicas: int, max_attempts: int) -> None:
    session.flush()
    for unit in session.scalars(select(WorkUnit).where(WorkUnit.task_id == task_id)):
        votes = session.scalars(select(schema.Submission).where(schema.Submission.work_unit_id == unit.id)).all()
        counting = [row for row in votes if row.reason != "late"]
        leased = session.scalar(select(func.count()).where(schema.Lease.work_unit_id == unit.id, schema.Lease.state == "leased"))
        assert len({row.contributor_id for row in counting}) == len(counting) <= max_attempts
        if unit.status == "open":
            assert unit.n_open + (leased or 0) + len(counting) >= replicas
            assert unit.n_open + (leased or 0) + len(counting) <= max_attempts
            assert {row.verdict for row in counting} <= {"waiting"}
        else:
            assert unit.n_open == 0
            assert "waiting" not in {row.verdict for row in votes}
        if unit.status == "satisfied":
            assert sum(row.verdict == "accepted" for row in votes) >= replicas
