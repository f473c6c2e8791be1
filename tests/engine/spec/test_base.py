"""The identity of a spec is its canonical JSON, and nothing else."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import SpecError
from engine.spec import AblationSpec, DatasetRef, Limits, ModelRef, Rows, parse_spec, parse_text, spec_to_yaml

LINES = st.text(
    min_size=1, max_size=30, alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"], exclude_characters="\ufeff")
)


def indices() -> st.SearchStrategy[object]:
    return st.one_of(st.just("all"), st.lists(st.integers(0, 10_000), min_size=1, max_size=6, unique=True).map(tuple))


@st.composite
def specs(draw: st.DrawFn) -> AblationSpec:
    mode = draw(st.sampled_from(["zero", "mean", "resample"]))
    site = draw(st.sampled_from(["z", "attn_out", "mlp_out"]))
    start = draw(st.integers(0, 1000))
    rows = draw(st.one_of(st.none(), st.just(Rows(start=start, stop=start + draw(st.integers(1, 500))))))
    return AblationSpec(
        model=ModelRef(id=draw(LINES)),
        dataset=DatasetRef(name="planted_induction", rows=rows),
        site=site,
        layers=draw(indices()),
        heads=draw(indices()) if site == "z" else "all",
        mode=mode,
        reference=None if mode == "zero" else DatasetRef(name="planted_induction", rows=Rows(start=0, stop=8)),
        metric=draw(st.sampled_from(["loss", "target_loss", "logit_diff", "accuracy"])),
        seeds=tuple(draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4, unique=True))) if mode == "resample" else (0,),
        limits=Limits(records=draw(st.one_of(st.none(), st.integers(1, 10_000))), batch_size=draw(st.integers(1, 64))),
    )


@given(specs())
def test_json_and_yaml_round_trips_keep_the_identity(spec: AblationSpec) -> None:
    assert parse_spec(json.loads(spec.canonical_json())) == spec
    assert parse_text(spec.canonical_json().decode()).spec.sha256 == spec.sha256
    assert parse_text(spec_to_yaml(spec, name="n")).spec.sha256 == spec.sha256


@given(specs())
def test_key_order_does_not_change_the_identity(spec: AblationSpec) -> None:
    values = spec.model_dump(mode="json")
    assert parse_spec(dict(reversed(values.items()))).sha256 == spec.sha256


def test_identity_is_the_hash_of_canonical_json_with_defaults_written_out() -> None:
    spec = AblationSpec(model=ModelRef(id="m"), dataset=DatasetRef(name="d"))
    expected = (
        '{"dataset":{"name":"d","path":null,"rows":null,"sha256":null},"heads":"all","kind":"ablation","layers":"all",'
        '"limits":{"batch_size":8,"heads":null,"layers":null,"max_length":512,"records":null},"metric":"loss","mode":"zero",'
        '"model":{"attention":"default","dtype":"float32","id":"m","revision":null},"reference":null,"schema_version":1,"seeds":[0],"site":"z"}'
    )
    assert spec.canonical_json().decode() == expected
    assert spec.sha256 == hashlib.sha256(expected.encode()).hexdigest()


def test_rows_change_the_identity_but_not_the_question() -> None:
    spec = AblationSpec(model=ModelRef(id="m"), dataset=DatasetRef(name="d"))
    shard = spec.with_rows(Rows(start=8, stop=16))
    assert shard.sha256 != spec.sha256
    assert shard.question_sha256 == spec.question_sha256 == spec.sha256


def test_every_limit_changes_the_identity() -> None:
    spec = AblationSpec(model=ModelRef(id="m"), dataset=DatasetRef(name="d"))
    for limits in (Limits(records=5), Limits(layers=1), Limits(heads=1), Limits(max_length=64), Limits(batch_size=1)):
        assert spec.model_copy(update={"limits": limits}).sha256 != spec.sha256


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "ablation", "dataset": {"name": "d"}, "model": {"id": "m"}, "mode": "mean"}, "needs a 'reference' slice"),
        ({"kind": "ablation", "dataset": {"name": "d"}, "model": {"id": "m"}, "layers": [1, 1]}, "names a number twice"),
        ({"kind": "ablation", "dataset": {"name": "d"}, "model": {"id": "m"}, "layers": [-1]}, "greater than or equal to 0"),
        ({"kind": "ablation", "dataset": {"name": "d"}, "model": {"id": "m"}, "site": "mlp_out", "heads": [1]}, "has no heads"),
        ({"kind": "ablation", "dataset": {}, "model": {"id": "m"}}, "exactly one of 'name' and 'path'"),
        ({"kind": "ablation", "dataset": {"name": "d"}, "model": {"id": "a\nb"}}, "model.id"),
        ({"kind": "ablation", "dataset": {"name": "../etc"}, "model": {"id": "m"}}, "dataset.name"),
        ({"kind": "ablation", "dataset": {"name": "d", "rows": {"start": 4, "stop": 4}}, "model": {"id": "m"}}, "empty"),
        ({"kind": "ablation", "dataset": {"name": "d"}, "model": {"id": "m"}, "seeds": [3]}, "'seeds' has no meaning"),
        ({"kind": "ablation", "dataset": {"name": "d"}, "model": {"id": "m"}, "colour": 3}, "colour"),
        ({"kind": "guess"}, "unknown kind of spec: 'guess'; expected one of: ablation"),
    ],
)
def test_a_wrong_field_is_named(values: dict, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(values)
    assert said in str(caught.value)
