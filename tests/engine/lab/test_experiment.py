"""Experiments of one's own: kept whole, marked as custom, and never taken for anything else."""

import json
from pathlib import Path

import pytest
import torch

from engine.custom import CustomCall, CustomResult
from engine.errors import Conflict, SpecError
from engine.folder import read_folder
from engine.hooks.edit import Edit
from engine.lab.experiment import experiment
from engine.lab.model import Model
from engine.models.loading import LoadedModel
from engine.spec import parse_spec
from scripts.execution import reread

TEXT = "two and two are four"
POST = "blocks.1.hook_resid_post"


@pytest.fixture
def model(llama: LoadedModel) -> Model:
    return Model(llama)


def halved(x: torch.Tensor) -> torch.Tensor:
    return x / 2


@experiment
def drop(model: Model, *, layer: int = 1, edits: tuple[Edit, ...] = ()) -> dict:
    """How far the last logits move when a layer's output is halved."""
    plain = model.logits(TEXT)[0, -1]
    with model.edit(halved, at=f"blocks.{layer}.hook_resid_post"):
        moved = model.logits(TEXT)[0, -1]
    return {"distance": torch.dist(plain, moved), "top": int(moved.argmax()), "logits": torch.stack([plain, moved])}


def test_a_run_keeps_the_text_the_arguments_and_the_numbers(model: Model, tmp_path: Path) -> None:
    done = drop.run(model, out=tmp_path / "run", layer=2)
    direct = drop(model, layer=2)
    assert done.result.metrics == {"distance": pytest.approx(float(direct["distance"])), "top": direct["top"]}
    assert torch.equal(done.tensors()["logits"], direct["logits"])
    kept = read_folder(tmp_path / "run")
    assert (kept.status, kept.spec.kind, kept.result.kind, kept.name) == ("ok", "custom", "custom", "drop")
    assert kept.spec.parameters == {"layer": 2, "edits": []}
    assert "def drop(model: Model" in kept.spec.source.text
    assert kept.provenance.spec_sha256 == kept.spec.sha256
    assert kept.provenance.model_fingerprint == model.loaded.fingerprint
    assert done.to_pandas().to_dict("list") == {"metric": ["distance", "top"], "value": list(done.result.metrics.values())}


def test_functions_that_were_in_place_are_kept_with_it(model: Model) -> None:
    inside = drop.run(model)
    assert [(source.name, source.at) for source in inside.result.functions] == [("halved", "blocks.1.hook_resid_post")]
    with model.edit(torch.abs, at="blocks.0.hook_mlp_out"), model.edit({"site": POST, "op": "zero"}):
        around = drop.run(model)
    assert [source.name for source in around.result.functions] == ["abs", "halved"]
    assert [Edit.model_validate(edit).op for edit in around.spec.edits] == ["zero"]
    assert drop.run(model).result.functions == inside.result.functions


def test_another_text_or_argument_is_another_run(model: Model) -> None:
    hashes = {drop.run(model, layer=layer).spec.sha256 for layer in (0, 1, 1)}
    assert len(hashes) == 2


def test_it_is_no_spec_and_no_answer_to_a_task(model: Model, tmp_path: Path) -> None:
    done = drop.run(model, out=tmp_path / "run")
    with pytest.raises(SpecError, match="run of somebody's own code"):
        parse_spec(done.spec.model_dump(mode="json"))
    with pytest.raises(Conflict, match="cannot be sent"):
        reread(tmp_path / "run")


def test_edits_are_arguments_like_any_other(model: Model) -> None:
    done = drop.run(model, edits=(Edit.model_validate({"site": POST, "op": "scale", "strength": 2}),))
    assert Edit.model_validate(done.spec.parameters["edits"][0]).strength == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"layer": torch.zeros(2)}, "argument 'layer' is Tensor"),
        ({"head": 1}, "cannot be called like that: got an unexpected keyword argument 'head'"),
        ({"layer": 2**60}, "whole numbers below"),
        ({"layer": float("nan")}, "cannot be kept"),
    ],
)
def test_arguments_that_cannot_be_kept_are_refused(model: Model, given: dict, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        drop.run(model, **given)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (3.0, "gave back float"),
        ({"x": "high"}, "gave back str as 'x'"),
        ({"x": float("inf")}, "numbers cannot be kept"),
    ],
)
def test_what_is_no_number_is_refused_and_leaves_nothing(model: Model, tmp_path: Path, made: object, said: str) -> None:
    def gives_back(model: Model) -> object:
        return made

    with pytest.raises(SpecError, match=said):
        experiment(gives_back).run(model, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_failed_run_is_kept_and_gives_way_to_the_next(model: Model, tmp_path: Path) -> None:
    @experiment
    def fails(model: Model, *, wrong: bool) -> dict:
        if wrong:
            raise LookupError("mine")
        return {"x": 1}

    with pytest.raises(LookupError, match="mine"):
        fails.run(model, out=tmp_path / "run", wrong=True)
    kept = read_folder(tmp_path / "run")
    assert (kept.status, kept.error) == ("failed", "mine")
    assert fails.run(model, out=tmp_path / "run", wrong=False).result.metrics == {"x": 1}
    with pytest.raises(Conflict, match="finished run"):
        fails.run(model, out=tmp_path / "run", wrong=False)


def test_a_name_that_means_the_folder_is_refused() -> None:
    with pytest.raises(SpecError, match="argument 'out'"):
        experiment(lambda model, out: {"x": model, "y": out})


def test_a_function_without_a_name_is_refused(model: Model) -> None:
    with pytest.raises(SpecError, match="'name'"):
        experiment(lambda model: {"x": model.n_layers}).run(model)


@pytest.mark.parametrize("name", ["x y", "import", "f();g", "a\n", "1a", "<lambda>"])
def test_a_stored_call_has_names_only_where_names_belong(model: Model, tmp_path: Path, name: str) -> None:
    drop.run(model, out=tmp_path / "run")
    head = json.loads((tmp_path / "run" / "run.json").read_text())
    head["spec"]["name"] = name
    (tmp_path / "run" / "run.json").write_text(json.dumps(head))
    with pytest.raises(SpecError, match="'name'"):
        read_folder(tmp_path / "run")


def test_the_values_read_back_as_they_were(model: Model) -> None:
    done = drop.run(model)
    assert CustomCall.model_validate_json(done.spec.model_dump_json()) == done.spec
    assert CustomResult.model_validate_json(done.result.model_dump_json()) == done.result
