from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy.orm import Session

from db import runs
from db.runs import RunFilter
from db.schema import Artifact, Contributor, Run, RunItem, RunMetric
from db.viewer import Viewer
from engine.errors import Conflict, NotAllowed, NotFound, SpecError
from tests import community


@pytest.fixture
def person(session: Session) -> Callable[..., Viewer]:
    def make(name: str, *, role: str = "contributor") -> Viewer:
        row = Contributor(username=name, role=role)
        session.add(row)
        session.flush()
        return Viewer(contributor_id=row.id, role=role)

    return make


@pytest.fixture
def ada(person: Callable[..., Viewer]) -> Viewer:
    return person("ada")


def made(session: Session, viewer: Viewer, **more: object) -> Run:
    return runs.create_run(session, viewer, community.SPEC, **more)  # pyright: ignore[reportArgumentType]


def seen(session: Session, viewer: Viewer, wanted: RunFilter | None = None) -> set[UUID]:
    return {run.id for run in runs.list_runs(session, viewer, wanted).rows}


def test_a_new_run_is_queued_private_and_mine(session: Session, ada: Viewer):
    run = made(session, ada, name="first", preset="laptop", tags=["x"])
    assert (run.status, run.visibility, run.owner_id, run.attempt) == ("queued", "private", ada.contributor_id, 0)
    assert (run.spec_sha256, run.question_sha256) == (community.SPEC.sha256, community.SPEC.question_sha256)
    assert runs.spec_of(run) == community.SPEC


def test_a_visitor_starts_nothing(session: Session):
    with pytest.raises(NotAllowed, match="Sign in"):
        made(session, Viewer.visitor())


def test_who_sees_which_run(session: Session, ada: Viewer, person: Callable[..., Viewer]):
    bob, admin, visitor = person("bob"), person("root", role="admin"), Viewer.visitor()
    private, unlisted, public = (made(session, ada, visibility=one).id for one in ("private", "unlisted", "public"))
    assert seen(session, ada) >= {private, unlisted, public}
    assert seen(session, admin) >= {private, unlisted, public}
    for stranger in (bob, visitor):
        assert seen(session, stranger) == {public}
        assert runs.get_run(session, stranger, unlisted).id == unlisted  # whoever has the link
        for question in (runs.get_run, runs.run_items, runs.run_metrics, runs.run_artifacts):
            with pytest.raises(NotFound, match="no run"):
                question(session, stranger, private)


def test_only_the_owner_and_admins_change_a_run(session: Session, ada: Viewer, person: Callable[..., Viewer]):
    run = made(session, ada, visibility="public").id
    for stranger in (person("bob"), Viewer.visitor()):
        for change in (runs.request_cancel, runs.retry_run, runs.delete_run):
            with pytest.raises(NotAllowed, match="belongs to somebody else"):
                change(session, stranger, run)
        with pytest.raises(NotAllowed):
            runs.set_note(session, stranger, run, "mine now")
    assert runs.set_note(session, person("root", role="admin"), run, "seen").note == "seen"


def test_filters(session: Session, ada: Viewer, person: Callable[..., Viewer]):
    first, second = made(session, ada, name="Heads of 100%"), made(session, person("bob"), name="other", visibility="public")
    second.status = "failed"
    session.flush()
    soon = datetime.now(UTC) + timedelta(hours=1)
    assert seen(session, ada) == {first.id, second.id}
    assert seen(session, ada, RunFilter(mine=True)) == {first.id}
    assert seen(session, Viewer.visitor(), RunFilter(mine=True)) == set()
    assert seen(session, ada, RunFilter(status="failed")) == {second.id}
    assert seen(session, ada, RunFilter(text="100%")) == {first.id}
    assert seen(session, ada, RunFilter(text="planted")) == {first.id, second.id}
    assert seen(session, ada, RunFilter(text="h_ads")) == set()
    assert seen(session, ada, RunFilter(since=soon)) == set()
    assert seen(session, ada, RunFilter(kind="ablation", until=soon, task_id=None)) == {first.id, second.id}


def test_pages_by_cursor_are_whole_while_runs_are_added(session: Session, ada: Viewer):
    wanted = [made(session, ada).id for _ in range(7)][::-1]
    got, cursor = list[UUID](), None
    while True:
        page = runs.list_runs(session, ada, limit=3, cursor=cursor)
        got += [run.id for run in page.rows]
        made(session, ada)
        cursor = page.next_cursor
        if cursor is None:
            break
    assert got == wanted


@pytest.mark.parametrize("cursor", ["x", "2026-01-01~", "~", "2026-01-01T00:00:00+00:00~nope"])
def test_a_made_up_cursor_is_refused(session: Session, ada: Viewer, cursor: str):
    with pytest.raises(SpecError, match="Start without a cursor"):
        runs.list_runs(session, ada, cursor=cursor)


def test_cancel_stops_a_queued_run_at_once_and_asks_a_running_one(session: Session, ada: Viewer):
    queued, running, ended = (made(session, ada) for _ in range(3))
    running.status, ended.status = "running", "failed"
    session.flush()
    for run in (queued, running, ended):
        runs.request_cancel(session, ada, run.id)
        runs.request_cancel(session, ada, run.id)
    assert (queued.status, queued.finished_at is not None) == ("cancelled", True)
    assert (running.status, running.cancel_requested) == ("running", True)
    assert (ended.status, ended.cancel_requested) == ("failed", False)


def test_retry_is_for_what_failed(session: Session, ada: Viewer):
    run = made(session, ada)
    with pytest.raises(Conflict, match="is queued; only failed and cancelled runs"):
        runs.retry_run(session, ada, run.id)
    run.status, run.error, run.traceback, run.cancel_requested = "failed", "e", "t", True
    session.flush()
    again = runs.retry_run(session, ada, run.id)
    assert (again.status, again.error, again.traceback, again.cancel_requested) == ("queued", None, None, False)


def test_delete_takes_everything_of_a_run(session: Session, ada: Viewer):
    run = made(session, ada)
    session.add_all(
        [
            RunItem(run_id=run.id, key="a", position=0, values={}),
            RunMetric(run_id=run.id, name="m", step=0, value=1.0),
            Artifact(run_id=run.id, name="f", sha256="0" * 64, size_bytes=1, media_type="text/plain"),
        ]
    )
    session.flush()
    runs.delete_run(session, ada, run.id)
    session.expire_all()
    for table in (RunItem, RunMetric, Artifact):
        assert session.query(table).count() == 0
    with pytest.raises(NotFound):
        runs.delete_run(session, ada, run.id)


def test_a_running_run_is_not_deleted(session: Session, ada: Viewer):
    run = made(session, ada)
    run.status = "running"
    session.flush()
    with pytest.raises(Conflict, match="Cancel it first"):
        runs.delete_run(session, ada, run.id)


def test_a_note_has_an_end(session: Session, ada: Viewer):
    with pytest.raises(SpecError, match="at most 20000"):
        runs.set_note(session, ada, made(session, ada).id, "x" * 20_001)


def test_an_unknown_run(session: Session, ada: Viewer):
    with pytest.raises(NotFound, match="Runs"):
        runs.get_run(session, ada, uuid4())
