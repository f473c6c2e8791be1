"""`philab run` and `run_experiment`, on the model whose right answer is known."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.folder import read_folder
from engine.result import AblationResult
from engine.spec.reading import read_spec
from scripts import run, run_experiment
from scripts.execution import file_name

SPEC = """\
name: Two heads & more
spec:
  kind: ablation
  model: {id: planted-induction}
  dataset: {name: planted_induction, rows: {start: 0, stop: 8}}
  metric: target_loss
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands run in a folder of their own, with a data folder of their own."""
    monkeypatch.setenv("PHILAB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PHILAB_CONFIG", str(tmp_path / "config"))
    work = tmp_path / "work"
    work.mkdir()
    (work / "mine.yaml").write_text(SPEC, encoding="utf-8")
    monkeypatch.chdir(work)
    return work


def test_a_run_is_kept_in_the_folder_and_told(elsewhere: Path, capsys: pytest.CaptureFixture[str]):
    assert run.main(["mine.yaml", "--out", "here", "--device", "cpu"]) == 0
    kept = read_folder(elsewhere / "here")
    assert (kept.status, kept.name) == ("ok", "Two heads & more")
    assert kept.spec == read_spec("mine.yaml").spec
    assert len(kept.items) == 8
    told = capsys.readouterr().out
    rows = [line.split()[0] for line in told.splitlines() if line.startswith("L")]
    assert rows[:2] == ["L0H1", "L1H2"]
    assert f"Run {kept.id} is in here" in told


def test_without_out_the_folder_is_named_after_the_question(elsewhere: Path):
    assert run.main(["mine.yaml", "--preset", "gpu_full"]) == 0
    folder = next((elsewhere / "results" / "runs").iterdir())
    assert folder.name.startswith("two-heads-more-")
    assert read_folder(folder).spec.limits.batch_size == 8


def test_a_finished_run_is_never_written_over(elsewhere: Path, capsys: pytest.CaptureFixture[str]):
    assert run.main(["mine.yaml", "--out", "here"]) == 0
    before = (elsewhere / "here" / "run.json").read_bytes()
    assert run.main(["mine.yaml", "--out", "here"]) == 1
    assert capsys.readouterr().err.endswith("philab: here holds a finished run. Choose another one with --out.\n")
    assert (elsewhere / "here" / "run.json").read_bytes() == before


LONG = SPEC.replace("stop: 8", "stop: 48").replace(
    "metric: target_loss",
    """mode: resample
  reference: {name: planted_induction, rows: {start: 64, stop: 128}}
  seeds: [0, 1, 2, 3, 4, 5, 6, 7]
  metric: target_loss""",
)
KEPT_OFTEN = "import engine.experiments.measuring as m; m.KEEP_EVERY_S = 0.1; from scripts.run import main; main()"


@pytest.fixture
def killed(elsewhere: Path) -> Path:
    """A run's folder, left behind by `kill -9` in the middle of the work."""
    (elsewhere / "long.yaml").write_text(LONG, encoding="utf-8")
    command = [sys.executable, "-c", KEPT_OFTEN, "long.yaml", "--out", "killed", "--device", "cpu"]
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL) as victim:
        deadline = time.monotonic() + 120
        while not (elsewhere / "killed" / "state.bin").exists():
            assert victim.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        victim.kill()
    assert read_folder(elsewhere / "killed").status == "running"
    return elsewhere / "killed"


@pytest.fixture
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_goes_on_where_it_was(elsewhere: Path, killed: Path, capsys: pytest.CaptureFixture[str]):
    assert run.main(["mine.yaml", "--out", "killed"]) == 1
    said = capsys.readouterr().err
    spec, other = read_spec("long.yaml").spec, read_spec("mine.yaml").spec
    assert f"holds an unfinished run of spec {spec.sha256[:12]}, not of this one ({other.sha256[:12]}). Choose another one" in said
    assert run.main(["long.yaml", "--out", "killed", "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "note: The run was stopped and went on later; " in told
    assert not (killed / "state.bin").exists()
    assert run.main(["long.yaml", "--out", "whole", "--device", "cpu"]) == 0
    again, whole = (read_folder(folder).result for folder in (killed, elsewhere / "whole"))
    assert isinstance(again, AblationResult)
    assert isinstance(whole, AblationResult)
    assert again.effects.estimate == pytest.approx(whole.effects.estimate, abs=1e-6)
    assert again.effects.se == pytest.approx(whole.effects.se, abs=1e-6)


@pytest.mark.parametrize(
    ("line", "replaced", "sentence"),
    [
        ("model: {id: planted-induction}", "model: {id: no-such-model}", "no-such-model"),
        ("metric: target_loss", "metric: loss\n  heads: [9]", "9"),
        ("metric: target_loss", "metric: happiness", "'metric'"),
        ("dataset: {name: planted_induction, rows: {start: 0, stop: 8}}", "dataset: {path: nowhere.jsonl}", "nowhere.jsonl"),
    ],
)
def test_what_cannot_run_is_one_sentence_and_leaves_nothing(
    line: str, replaced: str, sentence: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
):
    (elsewhere / "mine.yaml").write_text(SPEC.replace(line, replaced), encoding="utf-8")
    assert run.main(["mine.yaml", "--out", "here"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("philab: ")
    assert sentence in said
    assert not (elsewhere / "here" / "items.jsonl").exists()


def test_an_experiment_is_written_as_plain_files(elsewhere: Path):
    assert run_experiment.main(["--spec", "mine.yaml", "--geometry-telemetry"]) == 0
    experiment = next((elsewhere / "results" / "experiments").glob("*.json"))
    telemetry = elsewhere / "results" / "geometry_viz" / experiment.name
    told = json.loads(experiment.read_text(encoding="utf-8"))
    assert told["spec_sha256"] == read_spec("mine.yaml").spec.sha256
    assert [site["site"] for site in told["summary"]["top_sites"][:2]] == ["L0H1", "L1H2"]
    assert len(json.loads(telemetry.read_text(encoding="utf-8"))["telemetry"]["layers"]) == 2
    assert read_folder(experiment.with_suffix("")).status == "ok"


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "nothing to run"),
        (["--submit-to", "https://lab.example.org", "--spec", "mine.yaml"], "--task-id"),
        (["--task-id", "x"], "platform.auto_submit"),
    ],
)
def test_an_experiment_that_says_too_little_is_refused(argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    assert run_experiment.main(argv) == 1
    assert sentence in capsys.readouterr().err


def test_file_names_are_plain():
    assert file_name(read_spec("mine.yaml")) == f"two-heads-more-{read_spec('mine.yaml').spec.sha256[:8]}"
