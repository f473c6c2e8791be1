"""A run's folder is either finished or says that it is not; what was changed in it is noticed."""

import json
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

import pytest

from engine.errors import Conflict, ModelError, NotFound, RunCancelled, SpecError, StoreError
from engine.folder import FolderRecorder, read_folder
from engine.hooks.sites import Site
from engine.provenance import Hardware, Provenance
from engine.result import AblationResult, Coverage, Effects, Estimate
from engine.spec import AblationSpec, DatasetRef, ModelRef

SPEC = AblationSpec(model=ModelRef(id="m"), dataset=DatasetRef(name="d"))
PROVENANCE = Provenance(
    spec_sha256=SPEC.sha256,
    question_sha256=SPEC.question_sha256,
    model_fingerprint="a" * 64,
    dataset_sha256="b" * 64,
    engine_version="0",
    versions={},
    hardware=Hardware(device="cpu", name="x", cores=1, memory_gb=1, system="Linux x86_64"),
    started_at=datetime.now(UTC),
)
RESULT = AblationResult(
    clean=Estimate(mean=1, se=0.1, low=0.8, high=1.2, n=4),
    effects=Effects(
        metric="loss", unit="nats", sites=(Site(layer=0, name="z", head=0),), estimate=(0.5,), se=(0.1,), low=(0.3,), high=(0.7,), n=4
    ),
    coverage=Coverage(rows=4, rows_available=4, layers=1, layers_available=1, heads=1, heads_available=1),
)


def recorded(folder: Path) -> FolderRecorder:
    recorder = FolderRecorder(folder, name="n")
    recorder.begin(SPEC, PROVENANCE)
    recorder.item("p1", {"clean": 1.5})
    recorder.metric("m", 0.25, 3)
    recorder.artifact("effects.bin", b"123", "application/octet-stream")
    return recorder


def test_a_finished_run_reads_back_whole(tmp_path: Path) -> None:
    recorder = recorded(tmp_path / "r")
    recorder.finish(RESULT, PROVENANCE)
    run = read_folder(tmp_path / "r")
    assert (run.id, run.name, run.status, run.spec, run.result) == (recorder.run_id, "n", "ok", SPEC, RESULT)
    assert run.items == (("p1", {"clean": 1.5}),)
    assert run.metrics == (("m", 3, 0.25),)
    assert run.artifacts["effects.bin"].read_bytes() == b"123"


def test_before_the_end_it_says_running_and_holds_no_result(tmp_path: Path) -> None:
    recorded(tmp_path / "r")
    run = read_folder(tmp_path / "r")
    assert (run.status, run.result) == ("running", None)


@pytest.mark.parametrize(("error", "status"), [(ValueError("x"), "failed"), (RunCancelled("stop"), "cancelled")])
def test_a_failure_is_kept_with_its_text(tmp_path: Path, error: Exception, status: str) -> None:
    recorded(tmp_path / "r").fail(error, "trace")
    run = read_folder(tmp_path / "r")
    assert (run.status, run.error, run.traceback, run.result) == (status, str(error), "trace", None)


def test_a_run_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    FolderRecorder(tmp_path / "r").fail(ValueError("x"), "")
    assert not (tmp_path / "r").exists()


def test_bad_input_leaves_nothing(tmp_path: Path) -> None:
    recorded(tmp_path / "r").fail(SpecError("head 9 does not exist"), "trace")
    assert not (tmp_path / "r").exists()


def test_a_finished_or_foreign_folder_is_not_overwritten_but_a_broken_run_is(tmp_path: Path) -> None:
    recorded(tmp_path / "broken")
    FolderRecorder(tmp_path / "broken")
    recorded(tmp_path / "done").finish(RESULT, PROVENANCE)
    with pytest.raises(Conflict, match="finished run"):
        FolderRecorder(tmp_path / "done")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("!")
    with pytest.raises(Conflict, match="something else"):
        FolderRecorder(tmp_path / "other")
    with pytest.raises(Conflict, match="is a file"):
        FolderRecorder(tmp_path / "other" / "thesis.txt")


OTHER = SPEC.model_copy(update={"metric": "accuracy"})


def test_what_was_measured_is_there_for_the_next_attempt_and_gone_at_the_end(tmp_path: Path) -> None:
    first = recorded(tmp_path / "r")
    assert first.saved() is None
    first.save(b"one")
    first.save(b"two")
    first.fail(RunCancelled("stop"), "trace")
    second = recorded(tmp_path / "r")
    assert second.saved() == b"two"
    second.finish(RESULT, PROVENANCE)
    assert second.saved() is None
    assert {file.name for file in (tmp_path / "r").iterdir()} == {"run.json", "items.jsonl", "metrics.jsonl", "artifacts"}


def test_an_unfinished_run_of_another_spec_is_not_gone_on_with(tmp_path: Path) -> None:
    recorded(tmp_path / "r").save(b"state")
    before = (tmp_path / "r" / "run.json").read_bytes()
    other = FolderRecorder(tmp_path / "r")
    for begin in (lambda: other.expect(OTHER), lambda: other.begin(OTHER, PROVENANCE)):
        with pytest.raises(
            Conflict, match=f"an unfinished run of spec {SPEC.sha256[:12]}, not of this one .{OTHER.sha256[:12]}"
        ) as refused:
            begin()
        other.fail(refused.value, "trace")
    assert (tmp_path / "r" / "run.json").read_bytes() == before
    FolderRecorder(tmp_path / "r").expect(SPEC)


def test_bad_input_leaves_what_was_measured_before(tmp_path: Path) -> None:
    recorder = recorded(tmp_path / "r")
    recorder.save(b"state")
    recorder.fail(ModelError("memory ran out"), "trace")
    assert read_folder(tmp_path / "r").status == "failed"
    assert FolderRecorder(tmp_path / "r").saved() == b"state"


def test_what_a_kill_leaves_in_the_middle_of_writing_does_no_harm(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / ".run.json.1234abcd").write_bytes(b"{")
    recorder = recorded(folder)
    (folder / ".state.bin.1234abcd").write_bytes(b"half")
    recorder.finish(RESULT, PROVENANCE)
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_run_json_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(Conflict, match="is not that of a run"):
        FolderRecorder(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        FolderRecorder(tmp_path / "file" / "r").begin(SPEC, PROVENANCE)


def test_the_stop_event_cancels(tmp_path: Path) -> None:
    stop = Event()
    recorder = FolderRecorder(tmp_path / "r", stop=stop)
    assert not recorder.cancelled()
    stop.set()
    assert recorder.cancelled()


def changed(folder: Path, **values: object) -> None:
    head = json.loads((folder / "run.json").read_text()) | values
    (folder / "run.json").write_text(json.dumps(head))


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"format": 99}, SpecError),
        ({"spec": {"kind": "x"}}, SpecError),
        ({"id": "7"}, SpecError),
        ({"result": {"kind": "ablation"}}, SpecError),
        ({"artifacts": [{"name": "../../etc/passwd", "sha256": "0" * 64, "size_bytes": 1, "media_type": "x"}]}, SpecError),
        ({"artifacts": [{"name": "gone", "sha256": "0" * 64, "size_bytes": 1, "media_type": "x"}]}, StoreError),
    ],
)
def test_a_wrong_run_json_is_refused(tmp_path: Path, values: dict, error: type[Exception]) -> None:
    recorded(tmp_path / "r").finish(RESULT, PROVENANCE)
    changed(tmp_path / "r", **values)
    with pytest.raises(error):
        read_folder(tmp_path / "r")


def test_a_changed_artefact_is_noticed(tmp_path: Path) -> None:
    recorded(tmp_path / "r").finish(RESULT, PROVENANCE)
    (tmp_path / "r" / "artifacts" / "effects.bin").write_bytes(b"124")
    with pytest.raises(StoreError, match="changed or damaged"):
        read_folder(tmp_path / "r")


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"run\.json is missing"):
        read_folder(tmp_path)
