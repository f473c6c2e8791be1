"""A run of somebody's own code in the database: kept as text, shown, and never run, retried or sent."""

from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import ValidationError
from sqlalchemy.orm import Session

from db.imports import import_folder
from db.runs import create_run, spec_of
from db.schema import Contributor
from db.submissions import submit_run
from db.viewer import Viewer
from engine.custom import CustomCall, CustomResult, Source, parse_answer, parse_asked
from engine.errors import Conflict, SpecError
from engine.evidence.submission import SubmissionPayload
from engine.folder import FolderRecorder
from engine.spec import ModelRef, parse_text
from engine.store import Store
from tests import community

TRAP = "raise SystemExit('executed')\n"
SOURCE = Source(name="my", role="experiment", origin="file", text=TRAP)
CALL = CustomCall(name="my", model=ModelRef(id="planted-induction"), parameters={"layer": 1}, source=SOURCE)
RESULT = CustomResult(metrics={"distance": 1.5}, functions=(Source(name="f", role="edit", at="hook_embed", origin="file", text=TRAP),))


@pytest.fixture
def ada(session: Session) -> Viewer:
    row = Contributor(username="ada")
    session.add(row)
    session.flush()
    return Viewer(contributor_id=row.id, role="contributor")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    provenance = community.provenance(community.SPEC, "a" * 64).model_copy(update={"spec_sha256": CALL.sha256})
    recorder = FolderRecorder(tmp_path / "run", name="my")
    recorder.begin(CALL, provenance)
    recorder.finish(RESULT, provenance)
    return recorder.folder


def test_it_is_imported_whole_and_once(session: Session, ada: Viewer, folder: Path, store: Store) -> None:
    run = import_folder(session, ada, folder, store=store)
    assert import_folder(session, ada, folder, store=store) is run
    assert (run.kind, run.status, run.visibility, run.name, run.spec_sha256) == ("custom", "ok", "private", "my", CALL.sha256)
    assert parse_asked(run.spec) == CALL
    assert parse_answer(run.result) == RESULT


def test_it_is_neither_a_spec_nor_sent(session: Session, ada: Viewer, folder: Path, store: Store) -> None:
    run = import_folder(session, ada, folder, store=store)
    with pytest.raises(SpecError, match="somebody's own code"):
        spec_of(run)
    with pytest.raises(Conflict, match="somebody's own code, which is local"):
        submit_run(session, ada, run.id)


def test_a_payload_with_it_is_refused_in_plain_words() -> None:
    spec = community.SPEC
    sent = community.payload(spec, task_id=uuid4(), task_spec_hash=spec.sha256, dataset_hash="d" * 64).model_dump(mode="json")
    with pytest.raises(ValidationError, match="somebody's own code is local and cannot be sent"):
        SubmissionPayload.model_validate({**sent, "result_full": RESULT.model_dump(mode="json")})


def test_no_run_is_started_from_it(session: Session, ada: Viewer) -> None:
    with pytest.raises(SpecError, match="cannot be sent"):
        create_run(session, ada, parse_text(CALL.model_dump_json()).spec)
