"""Runs that are stopped, killed, short of memory, or given a state that is not theirs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from engine.errors import ModelError, RunCancelled
from engine.experiments.ablation import run_ablation
from engine.folder import FolderRecorder
from engine.models.loading import LoadedModel
from engine.result import AblationResult
from engine.spec import AblationSpec, DatasetRef, Limits, ModelRef
from engine.text.datasets import Dataset, Row
from tests import community
from tests.plugin_engine import TEXTS, hook_count

ROWS = Dataset(name="plain", rows=tuple(Row(id=f"p{i}", text=text[: 20 + 3 * i]) for i, text in enumerate(TEXTS)), sha256="0" * 64)
REFERENCE = Dataset(name="reference", rows=tuple(Row(id=f"r{i}", text=text) for i, text in enumerate(TEXTS)), sha256="1" * 64)


class StoppedAt(FolderRecorder):
    """Asks the run to stop when so much is done; remembers the progress."""

    def __init__(self, folder: Path, share: float = 2.0) -> None:
        self.heard: list[tuple[float, str]] = []
        self.share, self.stop = share, Event()
        super().__init__(folder, on_progress=self.hear, stop=self.stop)

    def hear(self, fraction: float, message: str) -> None:
        self.heard.append((fraction, message))
        if fraction >= self.share:
            self.stop.set()


def spec_of(**values: Any) -> AblationSpec:
    values = {"model": ModelRef(id="tiny"), "dataset": DatasetRef(name="rows"), "limits": Limits(batch_size=2), **values}
    if values.get("mode", "zero") != "zero":
        values["reference"] = DatasetRef(name="reference")
    return AblationSpec(**values)


def run(
    loaded: LoadedModel, recorder: FolderRecorder, *, at_once: int | None = 3, dataset: Dataset = ROWS, **values: Any
) -> AblationResult:
    spec = spec_of(**values)
    recorder.begin(spec, community.provenance(spec, "0" * 64))
    return run_ablation(spec, recorder, loaded, dataset, REFERENCE if spec.reference else None, variants_per_forward=at_once)


def stopped(loaded: LoadedModel, folder: Path, share: float, **values: Any) -> FolderRecorder:
    recorder = StoppedAt(folder, share)
    with pytest.raises(RunCancelled):
        run(loaded, recorder, **values)
    return recorder


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("mode", ["zero", "mean", "resample"])
def test_a_run_that_was_stopped_goes_on_and_ends_equal_to_the_bit(llama: LoadedModel, tmp_path: Path, mode: str, share: float) -> None:
    values: dict[str, Any] = {"mode": mode, "seeds": (0, 4) if mode == "resample" else (0,)}
    whole = run(llama, FolderRecorder(tmp_path / "whole"), **values)
    before = stopped(llama, tmp_path / "stopped", share, **values)
    assert before.saved() is not None
    again = StoppedAt(tmp_path / "stopped")
    result = run(llama, again, **values)
    assert (result.effects, result.clean) == (whole.effects, whole.clean)
    assert "The run was stopped and went on later" in result.notes[-1]
    fractions = [fraction for fraction, _ in again.heard]
    assert fractions[0] >= share
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)


def test_stopped_again_and_again_it_comes_to_its_end(llama: LoadedModel, tmp_path: Path) -> None:
    for share in (0.2, 0.4, 0.6, 0.8):
        stopped(llama, tmp_path / "run", share, at_once=None)
    result = run(llama, FolderRecorder(tmp_path / "run"), at_once=None)
    whole = run(llama, FolderRecorder(tmp_path / "whole"), at_once=None)
    assert result.effects.estimate == pytest.approx(whole.effects.estimate, abs=1e-6)


def test_only_what_is_missing_is_done(llama: LoadedModel, tmp_path: Path) -> None:
    stopped(llama, tmp_path, 0.9)
    calls = list[int]()
    with watching(llama, lambda rows: calls.append(rows)):
        run(llama, FolderRecorder(tmp_path))
    left = len(calls)
    with watching(llama, lambda rows: calls.append(rows)):
        run(llama, FolderRecorder(tmp_path / "whole"))
    assert left < 0.3 * (len(calls) - left)


@pytest.mark.parametrize(
    ("damaged", "why"),
    [
        (lambda state: state[:0], "it is damaged"),
        (lambda state: state[:-1], "it is damaged"),
        (lambda state: state[:100] + b"\x00" + state[101:], "it is damaged"),
        (lambda state: state + b"\xff" * 1000, "it is damaged"),
    ],
)
def test_a_damaged_state_is_left_aside_and_the_result_says_so(llama: LoadedModel, tmp_path: Path, damaged: Any, why: str) -> None:
    recorder = stopped(llama, tmp_path / "run", 0.5)
    recorder.save(damaged(recorder.saved()))
    result = run(llama, FolderRecorder(tmp_path / "run"))
    assert result.notes == (f"What an earlier attempt had measured was left aside: {why}.",)
    assert result.effects == run(llama, FolderRecorder(tmp_path / "whole")).effects


def test_the_state_of_another_dataset_is_left_aside(llama: LoadedModel, tmp_path: Path) -> None:
    stopped(llama, tmp_path / "run", 0.5)
    result = run(llama, FolderRecorder(tmp_path / "run"), dataset=replace(ROWS, sha256="9" * 64))
    assert "left aside: its dataset is 0000" in result.notes[0]


@contextmanager
def watching(loaded: LoadedModel, look: Any) -> Iterator[None]:
    """Tells the rows of each forward pass."""
    handle = loaded.model.get_input_embeddings().register_forward_hook(lambda _module, args, _output: look(args[0].shape[0]))
    try:
        yield
    finally:
        handle.remove()


def allocating_above(rows: int) -> Any:
    """Asks the allocator for what no machine has, if more than so many rows come at once."""

    def look(there_are: int) -> None:
        if there_are > rows:
            torch.empty(2**50)

    return look


@pytest.mark.parametrize("mode", ["zero", "mean", "resample"])
def test_when_memory_runs_out_batches_are_cut_and_the_user_is_told(llama: LoadedModel, tmp_path: Path, mode: str) -> None:
    values: dict[str, Any] = {"mode": mode, "limits": Limits(batch_size=4)}
    whole, recorder = run(llama, FolderRecorder(tmp_path / "whole"), **values), StoppedAt(tmp_path / "cut")
    with watching(llama, allocating_above(2)):
        result = run(llama, recorder, at_once=None, **values)
    assert result.effects.estimate == pytest.approx(whole.effects.estimate, abs=1e-6)
    assert result.clean.mean == pytest.approx(whole.clean.mean, abs=1e-6)
    assert result.notes == ("Memory ran out: batches were cut to 2 prompts.",)
    assert "memory ran out: batches are cut to 2 prompts" in [message for _, message in recorder.heard]
    fractions = [fraction for fraction, _ in recorder.heard]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)
    assert hook_count(llama.model) == 0


def test_when_only_the_variants_are_too_many_the_batches_stay(llama: LoadedModel, tmp_path: Path) -> None:
    recorder = StoppedAt(tmp_path / "cut")
    with watching(llama, allocating_above(4)):
        result = run(llama, recorder, at_once=4)
    assert result.notes == ("Memory ran out: fewer variants shared a forward pass from then on.",)
    assert "memory ran out: fewer variants share a forward pass" in [message for _, message in recorder.heard]
    assert result.effects.estimate == pytest.approx(run(llama, FolderRecorder(tmp_path / "whole")).effects.estimate, abs=1e-6)


def test_memory_that_does_not_suffice_for_one_prompt_ends_the_run_with_a_way_out(llama: LoadedModel, tmp_path: Path) -> None:
    shortest = min(len(llama.tokenizer(row.text or "")["input_ids"]) for row in ROWS.rows)
    with watching(llama, allocating_above(0)), pytest.raises(ModelError, match=f"on cpu with a single prompt, 'p0' of {shortest} tokens"):
        run(llama, FolderRecorder(tmp_path))
    assert hook_count(llama.model) == 0
