"""`philab selftest`: a table for people, an exit code for scripts."""

from pathlib import Path

import pytest

from engine.experiments import selftest as experiment
from engine.experiments.checks.subject import Measured
from engine.experiments.selftest import CHECKS, Trial
from engine.folder import read_folder
from scripts import selftest


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands run in a folder of their own, with a data folder of their own."""
    monkeypatch.setenv("PHILAB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PHILAB_CONFIG", str(tmp_path / "config"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def test_a_model_that_passes_is_a_table_and_exit_code_0(elsewhere: Path, capsys: pytest.CaptureFixture[str]):
    assert selftest.main(["planted-induction", "--device", "cpu", "--preset", "cpu_sanity"]) == 0
    told = capsys.readouterr().out
    assert all(any(line.startswith(trial.name) and "passed" in line for line in told.splitlines()) for trial in CHECKS)
    assert f"{len(CHECKS)} checks made, 0 failed, 0 not applicable." in told
    assert "resid_mid" in told
    assert "7.7e-06" in told
    assert [*elsewhere.iterdir()] == []


def test_a_check_that_fails_is_exit_code_1_and_is_told_in_full(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    wrong = Trial("one", "this and that", lambda _: Measured(0.5, 1e-5, "nats", "largest at L0H0"))
    monkeypatch.setattr(experiment, "CHECKS", (wrong,))
    assert selftest.main(["planted-induction", "--device", "cpu", "--out", "here"]) == 1
    told = capsys.readouterr().out
    assert "one     FAILED" in told
    assert "one: this and that. largest at L0H0" in told
    kept = read_folder(elsewhere / "here")
    assert (kept.status, kept.name, kept.spec.kind) == ("ok", "Self-test of planted-induction", "selftest")
    assert kept.result is not None
    assert f"Run {kept.id} is in here" in told


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no-such-model"], "no-such-model"),
        (["./nowhere"], "./nowhere"),
        (["planted-induction", "--tokens", "1"], "'tokens'"),
        (["planted-induction", "--preset", "huge"], "unknown preset 'huge'"),
        ([""], "'model.id'"),
    ],
)
def test_what_cannot_be_checked_is_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    assert selftest.main(arguments) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("philab: ")
    assert sentence in said


def test_a_folder_that_holds_something_is_not_written_over(elsewhere: Path, capsys: pytest.CaptureFixture[str]):
    (elsewhere / "here").mkdir()
    (elsewhere / "here" / "notes.txt").write_text("mine", encoding="utf-8")
    assert selftest.main(["planted-induction", "--out", "here"]) == 1
    assert "Choose another one with --out." in capsys.readouterr().err
