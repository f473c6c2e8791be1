"""Cards: cut into equal shards, hashed by the server, and never naming a place on one machine."""

from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from db.audit import broken_at
from db.contributors import ensure_owner, register
from db.schema import Audit, Contributor, Finding, Run, Submission, Task, WorkUnit
from db.tasks import create_task, delete_demo, draft_from, get_task, list_tasks, set_status
from db.viewer import Viewer
from engine.errors import Conflict, DatasetError, NotAllowed, NotFound, SpecError
from engine.settings import Settings
from engine.spec import parse_text
from engine.spec.base import Rows
from engine.text.datasets import load_dataset
from tests.community import PEPPER, SPEC, fill, join, make_task


def test_the_server_computes_the_hashes(session: Session) -> None:
    task = make_task(session, join(session, "ada"))
    assert task.spec_hash == SPEC.sha256
    assert task.question_sha256 == SPEC.question_sha256
    assert task.dataset_hash == load_dataset(SPEC.dataset).sha256
    assert parse_text(task.spec_yaml).spec == SPEC
    assert (task.n_shards, task.shard_size, task.replicas, task.runs_needed, task.status) == (6, 10, 2, 12, "open")


def test_shards_are_equal_disjoint_and_hashed(session: Session) -> None:
    task = make_task(session, join(session, "ada"), n_shards=4)
    units = session.scalars(select(WorkUnit).where(WorkUnit.task_id == task.id).order_by(WorkUnit.shard_no)).all()
    assert [(unit.row_start, unit.row_stop, unit.n_open) for unit in units] == [(0, 15, 2), (15, 30, 2), (30, 45, 2), (45, 60, 2)]
    assert [unit.spec_sha256 for unit in units] == [SPEC.with_rows(Rows(start=a, stop=a + 15)).sha256 for a in (0, 15, 30, 45)]


@pytest.mark.parametrize(
    ("asked", "cut"),
    [
        ({"n_shards": None, "replicas": None}, (25, 2, 2)),
        ({"n_shards": None, "replicas": None, "runs_needed": 12}, (6, 2, 10)),
        ({"n_shards": None, "replicas": 3, "runs_needed": 10}, (4, 3, 15)),
        ({"n_shards": None, "replicas": None, "runs_needed": 1}, (1, 1, 60)),
        ({"n_shards": None, "replicas": 1, "shard_size": 20}, (3, 1, 20)),
        ({"n_shards": 2, "replicas": 5, "shard_size": 7}, (2, 5, 7)),
    ],
)
def test_runs_needed_are_shards_times_replicas(session: Session, asked: dict[str, Any], cut: tuple[int, int, int]) -> None:
    task = make_task(session, join(session, "ada"), **asked)
    assert (task.n_shards, task.replicas, task.shard_size) == cut
    assert task.runs_needed == task.n_shards * task.replicas


def with_spec(**changes: Any) -> dict[str, Any]:
    return {"spec": {**SPEC.model_dump(mode="json"), **changes}}


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"n_shards": 31}, SpecError, "cannot be cut"),
        ({"n_shards": 6, "runs_needed": 13}, SpecError, "runs_needed"),
        ({"name": ""}, SpecError, "name"),
        ({"n_shards": 0}, SpecError, "n_shards"),
        ({"spec_hash": "0" * 64}, SpecError, "spec_hash"),
        ({"spec_yaml": "kind: ablation"}, SpecError, "exactly one"),
        ({"dataset_name": "micro_stories"}, SpecError, "dataset_name"),
        (with_spec(dataset={"path": "/etc/passwd"}), SpecError, "local file"),
        (with_spec(dataset={"name": "no_such_thing"}), DatasetError, "no_such_thing"),
        (with_spec(dataset={"name": "planted_induction", "sha256": "0" * 64}), DatasetError, "hash"),
        (with_spec(mode="mean", reference={"path": "x.jsonl"}), SpecError, "local file"),
        (with_spec(model={"id": "/srv/model"}), SpecError, "local folder"),
        (with_spec(model={"id": "../model"}), SpecError, "local folder"),
        (with_spec(model={"id": "C:\\model"}), SpecError, "local folder"),
        (with_spec(model={"id": "no-such-model"}), SpecError, "not shipped"),
        (with_spec(model={"id": "microsoft/phi-2"}), SpecError, "40 hex"),
        (with_spec(model={"id": "microsoft/phi-2", "revision": "main"}), SpecError, "40 hex"),
        (with_spec(limits={"records": 5}), SpecError, "records"),
        (with_spec(dataset={"name": "micro_stories"}, metric="logit_diff"), SpecError, "needs a 'target'"),
    ],
)
def test_bad_drafts_are_refused_by_name(session: Session, changes: dict[str, Any], error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        make_task(session, join(session, "ada"), **changes)


def test_a_pinned_model_from_the_hub_is_a_task_anywhere_but_where_a_list_forbids_it(session: Session, own_settings: Settings) -> None:
    pinned = with_spec(model={"id": "microsoft/phi-2", "revision": "a" * 40})
    ada = join(session, "ada")
    assert make_task(session, ada, **pinned).model_id == "microsoft/phi-2"
    hosted = own_settings.model_copy(update={"mode": "hosted"})
    draft = draft_from({"name": "x", "n_shards": 2, **pinned})
    with pytest.raises(NotAllowed, match="philab-micro"):
        create_task(session, ada, draft, settings=hosted)


def test_on_a_hosted_instance_a_contributors_task_waits_for_a_reviewer(session: Session, own_settings: Settings) -> None:
    hosted = own_settings.model_copy(update={"mode": "hosted"})
    ada, bob, owner = join(session, "ada"), join(session, "bob"), ensure_owner(session, own_settings)
    draft = draft_from({"name": "x", "n_shards": 2, "spec": SPEC.model_dump(mode="json")})
    task = create_task(session, ada, draft, settings=hosted)
    assert task.status == "draft"
    assert [card.id for card in list_tasks(session, ada)] == [task.id]
    for stranger in (bob, Viewer.visitor()):
        assert list_tasks(session, stranger) == []
        with pytest.raises(NotFound):
            get_task(session, stranger, task.id)
    with pytest.raises(NotAllowed):
        set_status(session, ada, task.id, "open")
    assert set_status(session, owner, task.id, "open").status == "open"
    assert len(list_tasks(session, bob)) == 1


def test_visitors_make_no_tasks(session: Session) -> None:
    with pytest.raises(NotAllowed):
        make_task(session, Viewer.visitor())


def test_the_most_urgent_task_comes_first(session: Session) -> None:
    ada = join(session, "ada")
    for name, priority in (("low", -1), ("high", 5), ("none", 0)):
        make_task(session, ada, name=name, priority=priority)
    assert [card.name for card in list_tasks(session, ada)] == ["high", "none", "low"]
    assert [card.name for card in list_tasks(session, ada, limit=1)] == ["high"]
    assert [card.name for card in list_tasks(session, ada, min_priority=0)] == ["high", "none"]
    assert list_tasks(session, ada, status="completed") == []
    with pytest.raises(SpecError, match="unknown task status"):
        list_tasks(session, ada, status="lost")


def test_archiving_closes_the_shards(session: Session) -> None:
    ada, bob = join(session, "ada"), join(session, "bob")
    task = make_task(session, ada)
    with pytest.raises(NotAllowed):
        set_status(session, bob, task.id, "archived")
    assert set_status(session, ada, task.id, "archived").status == "archived"
    assert list_tasks(session, ada) == []
    assert {unit.status for unit in session.scalars(select(WorkUnit))} == {"cancelled"}
    with pytest.raises(Conflict):
        set_status(session, ada, task.id, "archived")


def test_the_demo_goes_without_a_trace_but_in_the_audit(session: Session) -> None:
    ada = join(session, "ada")
    kept = make_task(session, ada)
    demo_people = []
    for name in ("demo-1", "demo-2", "demo-3"):
        made = register(session, username=name, email=None, pepper=PEPPER, tags=["demo"])
        demo_people.append(Viewer(contributor_id=made.contributor_id, role="contributor"))
    demo = make_task(session, demo_people[0], tags=["demo"], n_shards=3)
    fill(session, demo_people, demo.id)
    assert session.scalars(select(Finding)).first() is not None
    counts = delete_demo(session)
    assert (counts["submissions"], counts["runs"], counts["tasks"], counts["contributors"]) == (6, 6, 1, 3)
    assert list(session.scalars(select(Task.id))) == [kept.id]
    assert list(session.scalars(select(Contributor.id))) == [ada.contributor_id]
    for table in (Submission, Run, Finding):
        assert session.scalars(select(table)).first() is None
    assert session.scalars(select(Audit).where(Audit.action == "demo_removed")).one()
    assert broken_at(session) is None
