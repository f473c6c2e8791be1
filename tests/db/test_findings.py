"""From accepted runs to findings: what is said, when it is said, and that history is kept."""

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from db import schema
from db.contributors import ensure_owner
from db.findings import get_finding, list_findings, recompute
from db.tasks import create_task, draft_from
from db.viewer import Viewer
from engine.errors import NotFound
from engine.settings import Settings
from tests.community import SPEC, answer_for, fill, join, lease_shard, make_task, send

VISITOR = Viewer.visitor()


@pytest.fixture
def people(session: Session) -> list[Viewer]:
    return [join(session, f"person-{number}") for number in range(5)]


def test_a_finished_task_has_a_finding_per_site_with_an_interval(session: Session, people: list[Viewer]) -> None:
    task = make_task(session, people[0])
    assert fill(session, people, task.id) == 12
    found = list_findings(session, VISITOR, task.id)
    assert found[0].site_label == "L0H1"
    assert len(found) == 6
    top = found[0]
    assert (top.status, top.status_reason) == ("candidate", "1 hardware class of at least 2")
    assert top.ci_low is not None
    assert top.ci_high is not None
    assert top.ci_low < 1 < top.ci_high
    assert (top.k_shards, top.n_contributors, top.supporting_runs) == (6, 5, 12)
    assert len(top.data["shards"]) == 6
    assert len(top.data["submissions"]) == 12
    assert "nats" in top.description
    assert {finding.status for finding in found[1:]} == {"null"}
    assert get_finding(session, VISITOR, top.id) == top


def test_no_number_is_shown_before_the_last_shard_is_decided(session: Session, people: list[Viewer]) -> None:
    task = make_task(session, people[0], n_shards=4)
    assert list_findings(session, VISITOR, task.id) == []
    for person in people[:2]:
        send(session, person, answer_for(lease_shard(session, person, task.id)))
    fill(session, people[:1], task.id)
    fill(session, people[1:2], task.id)
    found = list_findings(session, VISITOR, task.id)
    assert {finding.status for finding in found} == {"unverified"}
    assert {finding.estimate for finding in found} == {None}
    assert "2 contributors of at least 3" in found[0].status_reason
    assert list_findings(session, VISITOR, task.id, min_confidence=0.0) == []


def test_the_same_inputs_change_nothing_and_new_ones_keep_the_old_as_history(session: Session, people: list[Viewer]) -> None:
    task = make_task(session, people[0])
    fill(session, people, task.id)
    before = list_findings(session, VISITOR, task.id)
    assert recompute(session, task.id) == 0
    assert list_findings(session, VISITOR, task.id) == before
    one = before[0].data["submissions"][0]
    session.execute(update(schema.Submission).where(schema.Submission.id == one).values(verdict="refused", reason="withdrawn"))
    assert recompute(session, task.id) == 6
    after = list_findings(session, VISITOR, task.id)
    assert len(after) == 6
    assert after[0].inputs_hash != before[0].inputs_hash
    assert after[0].supporting_runs == 11
    old = session.scalars(select(schema.Finding).where(schema.Finding.task_id == task.id, schema.Finding.valid_to.is_not(None))).all()
    assert {row.id for row in old} == {finding.id for finding in before}
    assert get_finding(session, VISITOR, before[0].id).estimate == before[0].estimate


def test_blanks_are_overwritten_not_kept(session: Session, people: list[Viewer]) -> None:
    task = make_task(session, people[0])
    fill(session, people, task.id)
    rows = session.scalar(select(func.count()).select_from(schema.Finding).where(schema.Finding.task_id == task.id))
    assert rows == 6


def test_filters(session: Session, people: list[Viewer]) -> None:
    task = make_task(session, people[0])
    whole = make_task(session, people[0], spec={**SPEC.model_dump(mode="json"), "site": "mlp_out"})
    fill(session, people, task.id)
    fill(session, people, whole.id)
    assert {finding.site_label for finding in list_findings(session, VISITOR, whole.id)} == {"L0 mlp_out", "L1 mlp_out"}
    assert len(list_findings(session, VISITOR)) == 8
    assert len(list_findings(session, VISITOR, finding_type="mlp_effect")) == 2
    assert {finding.site_label for finding in list_findings(session, VISITOR, min_confidence=0.99)} == {"L0H1", "L1 mlp_out"}
    assert len(list_findings(session, VISITOR, status="null")) == 6
    assert len(list_findings(session, VISITOR, limit=3, offset=6)) == 2
    confidences = [finding.confidence for finding in list_findings(session, VISITOR)]
    assert confidences == sorted(confidences, key=lambda value: -(value or 0.0))


def test_findings_of_a_draft_are_its_authors(session: Session, own_settings: Settings, people: list[Viewer]) -> None:
    hosted = own_settings.model_copy(update={"mode": "hosted"})
    draft = draft_from({"name": "x", "n_shards": 3, "replicas": 2, "spec": SPEC.model_dump(mode="json")})
    task = create_task(session, people[0], draft, settings=hosted)
    session.execute(update(schema.Task).where(schema.Task.id == task.id).values(status="open"))
    fill(session, people, task.id)
    session.execute(update(schema.Task).where(schema.Task.id == task.id).values(status="draft"))
    session.expire_all()
    seen = list_findings(session, people[0], task.id)
    assert seen
    assert list_findings(session, ensure_owner(session, own_settings), task.id)
    for stranger in (people[1], VISITOR):
        assert list_findings(session, stranger, task.id) == []
        with pytest.raises(NotFound):
            get_finding(session, stranger, seen[0].id)
