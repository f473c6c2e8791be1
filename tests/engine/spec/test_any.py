"""Several kinds of spec: told apart by `kind`, and none of them changed its identity when others came."""

import pytest

from engine.errors import SpecError
from engine.presets import apply_preset
from engine.spec import (
    AblationSpec,
    DatasetRef,
    ModelRef,
    Rows,
    SelfTestSpec,
    parse_spec,
    parse_text,
    read_spec,
    shipped_specs,
    spec_to_yaml,
)
from engine.spec.any import KINDS

IDENTITIES = {
    "agreement_heads": "288e241080465a72febe90a34870f8f131281b02cd13abe08c5dd4c65ed6cb00",
    "epistemology_mean": "bc1f439f81bf627971aedddd4a78cc895c4099d2bfbbad35411b690a15c4a3b2",
    "indirect_object_heads": "0cb489c9ddc764d46b6cb236ac1adca4fd1ee07ea38b306f9f6154b0fc263cbc",
    "mlp_ablation": "92b2701c678033c2daa547bd6ee885e30577d2697641ee31a679ebde7eee36d0",
}
"""Name of a shipped spec -> its hash when there was but one kind."""


@pytest.mark.parametrize("name", IDENTITIES)
def test_a_question_that_was_asked_before_is_still_the_same(name: str) -> None:
    assert read_spec(name).spec.sha256 == IDENTITIES[name]


@pytest.mark.parametrize("name", shipped_specs())
def test_shipped_specs_are_of_the_kind_that_they_say(name: str) -> None:
    spec = read_spec(name).spec
    assert type(spec) is KINDS[spec.kind]
    assert parse_text(spec_to_yaml(spec)).spec == spec
    assert parse_spec(spec.model_dump(mode="json")).sha256 == spec.sha256


def test_a_selftest_needs_no_more_than_a_model() -> None:
    spec = parse_text("kind: selftest\nmodel: {id: m}").spec
    assert spec == SelfTestSpec(model=ModelRef(id="m"))
    assert spec.dataset == DatasetRef(name="micro_stories", rows=Rows(start=0, stop=3))
    assert spec_to_yaml(spec) == "kind: selftest\nmodel:\n  id: m\n"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "selftest", "model": {"id": "m"}, "metric": "loss"}, "'metric'"),
        ({"kind": "selftest", "model": {"id": "m"}, "tokens": 2}, "'tokens'"),
        ({"kind": "magic", "model": {"id": "m"}}, "expected one of: ablation, selftest"),
        ({"kind": ["selftest"], "model": {"id": "m"}}, "unknown kind"),
    ],
)
def test_fields_of_another_kind_are_refused(values: dict, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(values)
    assert said in str(caught.value)


def test_each_kind_says_which_data_it_reads_and_what_it_draws_with() -> None:
    model, rows, other = ModelRef(id="m"), DatasetRef(name="d"), DatasetRef(name="r")
    resample = AblationSpec(model=model, dataset=rows, mode="resample", reference=other, seeds=(3, 4))
    assert (dict(resample.datasets), resample.drawn_with) == ({"dataset": rows, "reference": other}, (3, 4))
    assert dict(AblationSpec(model=model, dataset=rows).datasets) == {"dataset": rows}
    assert (dict(SelfTestSpec(model=model, dataset=rows).datasets), SelfTestSpec(model=model).drawn_with) == ({"dataset": rows}, ())


def test_a_preset_caps_any_kind() -> None:
    capped = apply_preset(SelfTestSpec(model=ModelRef(id="m")), "cpu_sanity")
    assert isinstance(capped, SelfTestSpec)
    assert (capped.limits.layers, capped.limits.heads) == (5, 2)
