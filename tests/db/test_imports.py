from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from db.imports import import_folder
from db.runs import run_artifacts, run_items, run_metrics
from db.schema import Contributor, Run
from db.viewer import Viewer
from engine.errors import Conflict, NotAllowed, NotFound, RunCancelled, StoreError
from engine.folder import FolderRecorder
from engine.store import Store
from tests import community

HASH = "a" * 64


@pytest.fixture
def ada(session: Session) -> Viewer:
    row = Contributor(username="ada")
    session.add(row)
    session.flush()
    return Viewer(contributor_id=row.id, role="contributor")


@pytest.fixture
def recorder(tmp_path: Path) -> FolderRecorder:
    recorder = FolderRecorder(tmp_path / "run", name="from a cluster")
    recorder.begin(community.SPEC, community.provenance(community.SPEC, HASH, preset="laptop"))
    recorder.item("p1", {"metric": 1.5})
    recorder.metric("loss", 0.25, 3)
    recorder.artifact("effects.safetensors", b"numbers", "application/octet-stream")
    return recorder


@pytest.fixture
def folder(recorder: FolderRecorder) -> Path:
    recorder.finish(community.result(community.SPEC), community.provenance(community.SPEC, HASH, preset="laptop"))
    return recorder.folder


def test_everything_of_the_folder_is_there_once(session: Session, ada: Viewer, folder: Path, store: Store):
    first = import_folder(session, ada, folder, store=store)
    second = import_folder(session, ada, folder, store=store)
    assert first is second
    assert session.query(Run).count() == 1
    assert (first.status, first.name, first.visibility, first.preset) == ("ok", "from a cluster", "private", "laptop")
    assert first.owner_id == ada.contributor_id
    assert first.result == community.result(community.SPEC).model_dump(mode="json")
    assert first.finished_at is not None
    assert [(item.key, item.values) for item in run_items(session, ada, first.id)] == [("p1", {"metric": 1.5})]
    assert [(point.name, point.step, point.value) for point in run_metrics(session, ada, first.id)] == [("loss", 3, 0.25)]
    [artifact] = run_artifacts(session, ada, first.id)
    assert store.get(artifact.sha256) == b"numbers"


def test_the_view_manifests_tells_of_it(session: Session, ada: Viewer, folder: Path, store: Store):
    run = import_folder(session, ada, folder, store=store)
    row = session.execute(text("select * from manifests where run_id = :id"), {"id": run.id}).one()
    assert row.dataset_id == "planted_induction"
    assert row.python_version == "3.11"
    assert row.params_json == run.spec


def test_a_failed_run_keeps_its_traceback(session: Session, ada: Viewer, recorder: FolderRecorder, store: Store):
    recorder.fail(ValueError("no"), "Traceback")
    run = import_folder(session, ada, recorder.folder, store=store)
    assert (run.status, run.error, run.traceback, run.result) == ("failed", "no", "Traceback", None)


def test_a_cancelled_run(session: Session, ada: Viewer, recorder: FolderRecorder, store: Store):
    recorder.fail(RunCancelled("stopped"), "")
    assert import_folder(session, ada, recorder.folder, store=store).status == "cancelled"


def test_a_run_that_is_under_way_is_refused(session: Session, ada: Viewer, recorder: FolderRecorder, store: Store):
    with pytest.raises(Conflict, match="is running"):
        import_folder(session, ada, recorder.folder, store=store)


def test_a_damaged_artefact_leaves_nothing(session: Session, ada: Viewer, folder: Path, store: Store):
    (folder / "artifacts" / "effects.safetensors").write_bytes(b"changed")
    with pytest.raises(StoreError, match="changed or damaged"):
        import_folder(session, ada, folder, store=store)
    assert session.query(Run).count() == 0


def test_a_folder_without_a_run(session: Session, ada: Viewer, tmp_path: Path, store: Store):
    with pytest.raises(NotFound, match=r"run\.json is missing"):
        import_folder(session, ada, tmp_path, store=store)


def test_visitors_and_others_take_nothing_over(session: Session, ada: Viewer, folder: Path, store: Store):
    with pytest.raises(NotAllowed, match="Sign in"):
        import_folder(session, Viewer.visitor(), folder, store=store)
    import_folder(session, ada, folder, store=store)
    bob = Contributor(username="bob")
    session.add(bob)
    session.flush()
    with pytest.raises(NotAllowed, match="imported by somebody else"):
        import_folder(session, Viewer(contributor_id=bob.id, role="contributor"), folder, store=store)
