"""Runs from Python: the same numbers as the command's, as tables, and shown without trust in anybody's text."""

import gc
import re
from pathlib import Path

import pytest

from engine.errors import Conflict, LabError, SpecError
from engine.lab.display import html_table
from engine.lab.model import Model
from engine.lab.runs import run
from engine.models.loading import LoadedModel
from engine.spec import AblationSpec, DatasetRef, ModelRef, Rows, read_spec, spec_to_yaml

SPEC = AblationSpec(
    model=ModelRef(id="planted-induction"), dataset=DatasetRef(name="planted_induction", rows=Rows(start=0, stop=6)), metric="target_loss"
)


@pytest.fixture(autouse=True)
def own_data(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHILAB_DATA", str(tmp_path_factory.getbasetemp() / "lab-data"))


def test_a_spec_in_any_form_gives_the_same_numbers(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(spec_to_yaml(SPEC, name="Mine"), encoding="utf-8")
    done = [run(form) for form in (SPEC, SPEC.model_dump(mode="json"), file, str(file), read_spec(file))]
    assert {one.result for one in done} == {done[0].result}
    assert [one.name for one in done] == ["", "", "Mine", "Mine", "Mine"]
    assert all(one.provenance.spec_sha256 == SPEC.sha256 for one in done)


def test_the_table_is_tidy() -> None:
    done = run(SPEC, name="Mine")
    frame, effects = done.to_pandas(), done.result.effects
    assert list(frame.columns) == ["site", "layer", "name", "head", "estimate", "se", "low", "high", "n", "metric", "unit"]
    assert list(frame["estimate"]) == list(effects.estimate)
    assert str(frame["layer"].dtype) == "Int64"
    assert set(frame.nlargest(2, "estimate")["site"]) == {"L0H1", "L1H2"}
    assert (frame["unit"] == "nats").all()
    by_prompt = done.tensors()["effects"]
    assert by_prompt.mean(0).tolist() == pytest.approx(list(effects.estimate), abs=1e-4)


def test_without_a_folder_it_is_kept_as_long_as_the_value(tmp_path: Path) -> None:
    done = run(SPEC)
    folder = done.folder
    assert (folder / "run.json").is_file()
    del done
    gc.collect()
    assert not folder.parent.exists()
    kept = run(SPEC, tmp_path / "run")
    assert kept.folder == tmp_path / "run"
    with pytest.raises(Conflict, match="finished run"):
        run(SPEC, tmp_path / "run")


def test_a_preset_caps_the_spec_and_is_recorded() -> None:
    done = run(SPEC, preset="cpu_sanity")
    assert done.provenance.preset == "cpu_sanity"
    assert done.result.coverage.heads == 2 < done.result.coverage.heads_available


def test_progress_is_told() -> None:
    heard: list[float] = []
    run(SPEC, on_progress=lambda fraction, _: heard.append(fraction))
    assert heard == sorted(heard)
    assert heard[-1] <= 1


@pytest.mark.parametrize("asked", [7, {"kind": "custom"}, "no_such_spec", {"kind": "ablation", "dataset": {"name": "none"}}])
def test_what_is_no_spec_is_refused_and_leaves_nothing(asked: object, tmp_path: Path) -> None:
    with pytest.raises(LabError):
        run(asked, tmp_path / "run")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_a_model_in_memory_is_asked_about_itself_only(llama: LoadedModel, write_rows) -> None:
    model, rows = Model(llama), write_rows([{"id": "a", "text": "the sun is hot"}, {"id": "b", "text": "the snow is cold"}])
    done = model.run({"kind": "ablation", "dataset": {"path": str(rows)}, "limits": {"layers": 1}})
    assert done.spec.model == llama.ref
    assert len(done.to_pandas()) == 4
    with pytest.raises(SpecError, match="is about 'planted-induction'"):
        model.run(SPEC)


def test_a_self_test_has_one_row_per_check(llama: LoadedModel) -> None:
    done = Model(llama).run({"kind": "selftest", "limits": {"records": 1, "layers": 1, "heads": 1}})
    frame = done.to_pandas()
    assert len(frame) == len(done.result.checks)
    assert not (frame["passed"] == False).any()  # noqa: E712
    assert f"The first 10 of {len(frame)} rows" in repr(done)


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", "</td><img src=x onerror=alert(1)>", "\"'><b>&amp;", "<!--"])
def test_hostile_text_is_shown_and_not_obeyed(hostile: str) -> None:
    done = run(SPEC, name=hostile)
    html = done._repr_html_() + html_table(hostile, [hostile], [[hostile]], [hostile])
    assert set(re.findall(r"<(/?\w+)", html)) <= {
        f"{slash}{tag}" for tag in ("div", "p", "strong", "small", "table", "thead", "tbody", "tr", "th", "td") for slash in ("", "/")
    }
    assert "<!" not in html
    assert hostile not in html
    assert hostile in repr(done)
