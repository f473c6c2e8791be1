"""A model in a spec: two ways to write one are one question, and new fields leave old questions alone."""

import json

import pytest

from engine.errors import SpecError
from engine.settings import AllowedModel
from engine.spec import AblationSpec, DatasetRef, ModelRef, parse_spec, read_spec, spec_to_yaml
from engine.spec.reading import parse_text

SHIPPED_HASHES = {
    "planted_heads": "ae43a6a58fbbdae5c3b38e4b219ca59e57bd1fe3756e70c476fff110dadc9024",
    "epistemology_mean": "bc1f439f81bf627971aedddd4a78cc895c4099d2bfbbad35411b690a15c4a3b2",
}
"""As they were before models could be quantised."""
PHI_2 = "2398a5d994dc63b8e2bb2a22d65182871cba55561c71decd58cd53ca9130c844"


def _spec(**model: object) -> AblationSpec:
    return AblationSpec(model=ModelRef.model_validate(model), dataset=DatasetRef(name="d"))


@pytest.mark.parametrize("name", SHIPPED_HASHES)
def test_specs_from_before_keep_their_hash(name: str) -> None:
    assert read_spec(name).spec.sha256 == SHIPPED_HASHES[name]


def test_a_short_name_is_the_same_question_as_the_hub_id() -> None:
    assert ModelRef(id="phi-2") == ModelRef(id="microsoft/phi-2")
    assert _spec(id="phi-2", dtype="bfloat16").sha256 == _spec(id="microsoft/phi-2", dtype="bfloat16").sha256 == PHI_2
    assert ModelRef(id="./phi-2").id == "./phi-2"
    assert AllowedModel(id="phi-2", revision="0" * 40) == AllowedModel(id="microsoft/phi-2", revision="0" * 40)


def test_quantization_is_a_question_of_its_own_and_survives_json_and_yaml() -> None:
    plain, small = _spec(id="m"), _spec(id="m", quantization="nf4")
    assert plain.sha256 != small.sha256
    assert "quantization" not in json.loads(plain.canonical_json())["model"]
    assert json.loads(small.canonical_json())["model"]["quantization"] == "nf4"
    for spec in (plain, small):
        assert parse_spec(json.loads(spec.canonical_json())) == spec
        assert parse_text(spec_to_yaml(spec, name="n")).spec == spec


def test_an_unknown_quantization_is_named() -> None:
    with pytest.raises(SpecError, match=r"'model.quantization': Input should be 'int8', 'nf4' or 'fp4'"):
        parse_spec({"kind": "ablation", "model": {"id": "m", "quantization": "int2"}, "dataset": {"name": "d"}})
