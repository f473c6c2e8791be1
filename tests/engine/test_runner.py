"""From a spec to a folder, on the shipped models: nothing in between is replaced."""

from pathlib import Path

import pytest

from engine.errors import DatasetError, SpecError
from engine.folder import FolderRecorder, read_folder
from engine.models import loading, placement
from engine.runner import run
from engine.settings import Settings, read_settings
from engine.spec import AblationSpec, Rows, read_spec


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("lab")
    return read_settings({"PHILAB_DATA": str(folder / "data"), "PHILAB_CONFIG": str(folder / "config")})


def shipped(name: str, rows: Rows, **changes: object) -> AblationSpec:
    return read_spec(name).spec.with_rows(rows).model_copy(update=changes)


def test_the_planted_heads_are_named_and_no_other(lab: Settings, tmp_path: Path) -> None:
    result = run(shipped("planted_heads", Rows(start=0, stop=24)), FolderRecorder(tmp_path / "r"), settings=lab)
    effects = dict(zip((site.label for site in result.effects.sites), result.effects.estimate, strict=True))
    assert {label for label, effect in effects.items() if abs(effect) >= 0.05} == {"L0H1", "L1H2"}
    stored = read_folder(tmp_path / "r")
    assert (stored.status, stored.result) == ("ok", result)
    assert stored.provenance is not None
    assert stored.provenance.question_sha256 == read_spec("planted_heads").spec.with_rows(None).sha256


def test_the_same_spec_gives_the_same_numbers_to_the_bit(lab: Settings, tmp_path: Path) -> None:
    spec = shipped("indirect_object_heads", Rows(start=48, stop=56), layers=(1,), seeds=(3,))
    first, second = (run(spec, FolderRecorder(tmp_path / name), settings=lab) for name in ("a", "b"))
    assert first == second


def test_a_head_of_the_micro_model_matters_whatever_the_seed(lab: Settings, tmp_path: Path) -> None:
    """Resample ablation of L1H3 on indirect objects: the interval excludes 0 for every seed, and the effects agree to a quarter."""
    found = []
    for seed in (0, 1, 2):
        spec = shipped("indirect_object_heads", Rows(start=48, stop=88), layers=(1,), heads=(3,), seeds=(seed,))
        effects = run(spec, FolderRecorder(tmp_path / str(seed)), settings=lab).effects
        assert effects.high[0] < 0
        found.append(effects.estimate[0])
    assert max(found) - min(found) < 0.25 * abs(sum(found) / 3)


def test_a_wrong_question_leaves_no_folder(lab: Settings, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="head 9 does not exist"):
        run(shipped("planted_heads", Rows(start=0, stop=4), heads=(9,)), FolderRecorder(tmp_path / "r"), settings=lab)
    with pytest.raises(DatasetError):
        run(shipped("planted_heads", Rows(start=0, stop=10_000)), FolderRecorder(tmp_path / "s"), settings=lab)
    assert list(tmp_path.iterdir()) == []


def test_how_the_model_was_loaded_is_told_in_the_result(lab: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine has a second device here, of which nothing is free."""
    free = loading.free_bytes
    monkeypatch.setattr(placement, "device_types", lambda: ["cuda", "cpu"])
    monkeypatch.setattr(loading, "free_bytes", lambda device: 0 if device.type == "cuda" else free(device))
    spec = shipped("planted_heads", Rows(start=0, stop=2), layers=(1,))
    result = run(spec, FolderRecorder(tmp_path / "r"), settings=lab)
    assert result.notes[0].startswith("The model runs on the CPU: its weights take 0.0 GiB, but 0.0 GiB are free on cuda")
    assert read_folder(tmp_path / "r").result == result
