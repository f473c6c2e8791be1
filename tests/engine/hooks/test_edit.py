"""Edits as data: what they refuse, and that they survive JSON."""

import json
import math
import time
from typing import Any, get_args

import numpy as np
import pytest
import rfc8785
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.hooks.edit import MAX_VALUES, PAIR_OPS, RULES, Edit, Op, TensorRef, When, read_edits
from engine.hooks.positions import EVERY
from engine.hooks.sites import BY_HEAD, GROUPED, PAIRS, Site
from tests.engine.hooks.test_positions import rules
from tests.engine.hooks.test_sites import sites

POST = "blocks.1.hook_resid_post"
PATTERN = "blocks.1.attn.hook_pattern"
OPS = get_args(Op)
NUMBERS = st.floats(-1e6, 1e6)
VECTORS = st.lists(NUMBERS, min_size=1, max_size=4)
REFS = st.builds(TensorRef, sha256=st.text("0123456789abcdef", min_size=64, max_size=64), shape=st.tuples(st.integers(1, 9)))


def _values(draw: st.DrawFn, op: Op, site: Site) -> Any:
    if RULES[op].value == "no":
        return None
    if site.name in PAIRS:
        return draw(NUMBERS)
    tables = VECTORS.flatmap(lambda row: st.lists(st.just(row), min_size=1, max_size=3))
    lists = VECTORS | tables | REFS
    return draw(lists if RULES[op].value == "direction" and site.unit is None else NUMBERS | lists)


def _condition(draw: st.DrawFn, site: Site) -> When | None:
    elsewhere = sites().filter(lambda one: one.name not in PAIRS | GROUPED and (one.head is not None or one.name not in BY_HEAD))
    own = site.name not in BY_HEAD or site.head is not None
    place = draw(st.none() | elsewhere if own else elsewhere)
    return When(feature=draw(VECTORS), site=place, relation=draw(st.sampled_from(["<", ">"])), threshold=draw(NUMBERS))


@st.composite
def edits(draw: st.DrawFn) -> Edit:
    """Any edit that there can be."""
    site = draw(sites())
    op: Op = draw(st.sampled_from(sorted(PAIR_OPS) if site.name in PAIRS else OPS))
    strength = None if RULES[op].strength is None else draw(NUMBERS | (st.just(math.inf) if op == "cap" else st.just(1.0)))
    return Edit(
        site=site,
        op=op,
        value=_values(draw, op, site),
        strength=strength,
        positions=draw(rules()),
        keys=draw(rules()) if site.name in PAIRS else EVERY,
        when=None if site.name in PAIRS | GROUPED or draw(st.booleans()) else _condition(draw, site),
        seed=draw(st.integers(0, 2**31 - 1)) if op == "resample" else 0,
    )


@settings(deadline=None, max_examples=50)
@given(edit=edits())
def test_an_edit_survives_json_to_the_letter(edit: Edit) -> None:
    text = edit.model_dump_json()
    again = Edit.model_validate_json(text)
    assert again == edit
    assert hash(again) == hash(edit)
    assert again.model_dump_json() == text
    assert read_edits([json.loads(text), edit]) == (edit, edit)
    assert Edit.model_validate_json(rfc8785.dumps(edit.model_dump(mode="json"))) == edit
    assert Edit.model_validate(edit.model_dump()) == edit


@settings(deadline=None, max_examples=30)
@given(edit=edits(), level=NUMBERS)
def test_another_strength_changes_nothing_else(edit: Edit, level: float) -> None:
    if RULES[edit.op].strength is None:
        with pytest.raises(ValidationError, match=f"op '{edit.op}' has no strength; leave 'strength' out"):
            edit.at_strength(level)
        return
    other = edit.at_strength(level)
    assert other.strength == level
    assert other.model_dump(exclude={"strength"}) == edit.model_dump(exclude={"strength"})


@pytest.mark.parametrize(
    ("op", "value", "neutral", "other"),
    [
        ("add", [1.0], 0.0, 1e-9),
        ("norm_add", [1.0], -0.0, 1.0),
        ("scale", None, 1.0, 0.0),
        ("orthogonal", [1.0], 1.0, 0.0),
        ("cap", [1.0], math.inf, 1e30),
    ],
)
def test_each_operation_knows_the_strength_at_which_it_does_nothing(op: Op, value: Any, neutral: float, other: float) -> None:
    assert Edit(site=POST, op=op, value=value, strength=neutral).neutral
    assert not Edit(site=POST, op=op, value=value, strength=other).neutral


def test_operations_without_a_neutral_strength_are_never_neutral() -> None:
    assert not Edit(site=POST, op="zero").neutral
    assert not Edit(site=POST, op="set", value=0.0).neutral
    assert not Edit(site=POST, op="clamp", value=[1.0], strength=0.0).neutral


def test_infinity_is_a_word_in_json_and_a_number_again_when_read() -> None:
    edit = Edit(site=POST, op="cap", value=[1.0], strength=math.inf)
    assert '"strength":"inf"' in edit.model_dump_json()
    assert Edit.model_validate_json(edit.model_dump_json()) == edit


def test_tensors_and_arrays_are_taken_as_values() -> None:
    expected = Edit(site=POST, op="add", value=[0.5, -2.0])
    assert Edit(site=POST, op="add", value=torch.tensor([0.5, -2.0], dtype=torch.bfloat16, requires_grad=True)) == expected
    assert Edit(site=POST, op="add", value=np.array([0.5, -2.0], dtype=np.float16)) == expected
    assert Edit(site=POST, op="set", value=torch.tensor(3.0)) == Edit(site=POST, op="set", value=3.0) == Edit(site=POST, op="set", value=3)


ALWAYS = {"site": POST, "op": "add", "value": 1.0}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({**ALWAYS, "token": 3}, r"token\n.*Extra inputs are not permitted"),
    ({**ALWAYS, "op": "ad"}, r"op\n.*Input should be 'zero', 'mean'.*input_value='ad'"),
    ({**ALWAYS, "op": None}, r"op\n.*Input should be 'zero', 'mean'"),
    ({"site": POST}, r"op\n.*Field required"),
    ({**ALWAYS, "site": 3}, r"site\n.*valid dictionary or instance of Site.*input_value=3"),
    ({**ALWAYS, "value": "abc"}, r"value.number\n.*valid number.*input_value='abc'"),
    ({**ALWAYS, "value": True}, "True is not a number; give a number, a vector or a table"),
    ({**ALWAYS, "value": [1.0, None]}, r"value.vector.1\n.*valid number.*input_value=None"),
    ({**ALWAYS, "value": []}, r"value.vector\n.*at least 1 item"),
    ({**ALWAYS, "value": [[]]}, r"value.table.0\n.*at least 1 item"),
    ({**ALWAYS, "value": [[[1.0]]]}, r"value.table.0.0\n.*valid number"),
    ({**ALWAYS, "value": [1.0, math.nan]}, r"value.vector.1\n.*finite number.*input_value=nan"),
    ({**ALWAYS, "value": math.inf}, r"value.number\n.*finite number.*input_value=inf"),
    ({**ALWAYS, "value": [[1.0], [1.0, 2.0]]}, r"rows of a value differ in length \(1, 2\); give one vector of equal length per token"),
    ({**ALWAYS, "value": [[1.0, 3.0], 1.0]}, r"rows of a value differ in length \(2, 1\)"),
    ({**ALWAYS, "value": {"a": 1}}, r"value.tensor.sha256\n.*Field required"),
    ({**ALWAYS, "value": {"sha256": "z" * 64, "shape": [2]}}, r"value.tensor.sha256\n.*match pattern"),
    ({**ALWAYS, "value": {"sha256": "0" * 64, "shape": [0]}}, r"value.tensor.shape.0\n.*greater than or equal to 1"),
    ({**ALWAYS, "value": None}, "op 'add' needs a 'value'; give a number or a vector"),
    ({**ALWAYS, "op": "zero"}, "op 'zero' takes no value; leave 'value' out"),
    ({"site": POST, "op": "scale"}, "op 'scale' needs a 'strength'; give a number"),
    ({"site": POST, "op": "zero", "strength": 2}, "op 'zero' has no strength; leave 'strength' out"),
    ({"site": POST, "op": "clamp", "value": [1.0]}, "op 'clamp' needs a 'strength'"),
    ({"site": POST, "op": "project_out"}, "op 'project_out' needs a 'value'; give a direction"),
    ({"site": POST, "op": "project_out", "value": 2.0}, r"needs a direction: a vector as wide as the site \(value is 2.0\)"),
    ({"site": POST, "op": "clamp", "strength": 1, "value": {"sha256": "0" * 64, "shape": []}}, "op 'clamp' needs a direction"),
    ({"site": POST, "op": "cap", "value": [1.0], "strength": "-inf"}, "strength -inf is not a finite number; op 'cap' needs one"),
    ({**ALWAYS, "strength": "inf"}, "strength inf is not a finite number"),
    ({**ALWAYS, "strength": math.nan}, "strength nan is not a finite number"),
    ({**ALWAYS, "strength": "strong"}, r"strength\n.*valid number.*input_value='strong'"),
    ({**ALWAYS, "seed": 3}, "op 'add' draws nothing, so 'seed' has no meaning; leave it out"),
    ({"site": POST, "op": "resample", "seed": -1}, r"seed\n.*greater than or equal to 0"),
    ({**ALWAYS, "keys": {"at": "last"}}, "site 'resid_post' has no key tokens; leave 'keys' out, or choose 'scores' or 'pattern'"),
    (
        {"site": PATTERN, "op": "clamp", "value": [1.0], "strength": 1},
        "no meaning at site 'pattern'; expected one of: add, scale, set, zero",
    ),
    (
        {"site": PATTERN, "op": "set", "value": [1.0, 2.0]},
        "'pattern' has one number for each pair of tokens; give a number, and choose pairs",
    ),
    ({"site": PATTERN, "op": "zero", "when": {"feature": [1.0]}}, "a condition belongs to one token, and site 'pattern' has several"),
    ({"site": "blocks.1.attn.hook_k", "op": "zero", "when": {"feature": [1.0]}}, "site 'k' has several; leave 'when' out"),
    ({"site": "blocks.1.attn.hook_q", "op": "zero", "when": {"feature": [1.0]}}, "site 'q' has one for each head; say which head"),
    ({**ALWAYS, "when": {"feature": [1.0], "site": PATTERN}}, "one token's vector, and site 'pattern' has none; ask at another site"),
    ({**ALWAYS, "when": {"feature": [1.0], "relation": ">="}}, r"when.relation\n.*'>' or '<'.*input_value='>='"),
    ({**ALWAYS, "when": {"feature": [1.0], "threshold": math.inf}}, r"when.threshold\n.*finite number"),
    ({**ALWAYS, "when": {"threshold": 1.0}}, r"when.feature\n.*Field required"),
    ({**ALWAYS, "positions": "last"}, r"positions\n.*"),
    ({**ALWAYS, "positions": {"at": "lats"}}, r"positions\n.*'lats'.*'all', 'index'"),
]


@pytest.mark.parametrize(("values", "text"), WRONG)
def test_a_wrong_edit_is_refused_with_what_is_wrong_and_what_would_be_right(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text) as refused:
        Edit.model_validate(values)
    assert refused.value.error_count() <= 3


@pytest.mark.parametrize("value", [[0.0] * 300_000, ["a"] * 190_000, [[0.0] * 300] * 1000, [[]] * 100_000, [[1.0]] * 250_000])
def test_a_huge_value_is_refused_at_once_and_shortly(value: list[Any]) -> None:
    started = time.process_time()
    with pytest.raises(ValidationError) as refused:
        Edit(site=POST, op="add", value=value)
    assert len(str(refused.value)) < 1000
    assert time.process_time() - started < 2


def test_the_largest_value_is_taken_and_one_number_more_is_not() -> None:
    assert Edit(site=POST, op="set", value=[[1.0] * 100] * (MAX_VALUES // 100))
    with pytest.raises(
        ValidationError, match=r"a value of 200001 numbers is too large for an edit \(at most 200000\); name it by a TensorRef"
    ):
        Edit(site=POST, op="set", value=[0.0] * (MAX_VALUES + 1))
    with pytest.raises(ValidationError, match="a value of 400000 numbers is too large"):
        Edit(site=POST, op="set", value=torch.zeros(400_000))


def _nested(kind: str, depth: int) -> dict[str, Any]:
    rule: dict[str, Any] = {"at": "last"}
    for _ in range(depth):
        rule = {"at": "not", "of": rule} if kind == "not" else {"at": kind, "of": [rule]}
    return rule


@pytest.mark.parametrize("kind", ["and", "or", "not"])
@pytest.mark.parametrize("depth", [21, 180, 20_000])
def test_rules_nested_without_end_are_refused(kind: str, depth: int) -> None:
    with pytest.raises(ValidationError, match="rules are nested more than 20 deep; write them with fewer 'and', 'or' and 'not'"):
        Edit(site=POST, op="zero", positions=_nested(kind, depth))


def test_text_nested_without_end_is_refused() -> None:
    text = '{"at":"not","of":' * 100_000 + '{"at":"last"}' + "}" * 100_000
    with pytest.raises(ValidationError, match="recursion limit exceeded"):
        Edit.model_validate_json(f'{{"site":"{POST}","op":"zero","positions":{text}}}')


def test_rules_nested_twenty_deep_are_taken() -> None:
    edit = Edit(site=POST, op="zero", positions=_nested("and", 20))
    assert Edit.model_validate_json(edit.model_dump_json()) == edit
