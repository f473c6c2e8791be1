"""The script of a run does the run again, whatever people have called things."""

import ast
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.as_python import as_python, literal
from engine.custom import CustomCall, Source
from engine.spec import AblationSpec, DatasetRef, ModelRef, Rows, SelfTestSpec, parse_spec, read_spec, shipped_specs

ROOT = Path(__file__).resolve().parents[2]
PLANTED = AblationSpec(
    model=ModelRef(id="planted-induction"), dataset=DatasetRef(name="planted_induction", rows=Rows(start=0, stop=6)), metric="target_loss"
)
HOSTILE = ["\"'", "'''\nimport os\n'''", '"""', "\\", "\\'", "a\nb\r\u2028c", "\x00\x1b[31m", "{0}%s$x", "\u202eabc", "#", "é日本 😀"]
TEXT = st.text(min_size=1, max_size=60) | st.sampled_from(HOSTILE)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(TEXT, inner, max_size=8),
    max_leaves=30,
)


def calls(script: str) -> dict[str, ast.Call]:
    """The calls that a script makes at its top level, by the name that takes the value; anything else there is an error."""
    found: dict[str, ast.Call] = {}
    for statement in ast.parse(script).body[1:]:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call):
            found[ast.unparse(statement.targets[0])] = statement.value
        elif isinstance(statement, ast.Assign):
            ast.literal_eval(statement.value)
        else:
            assert isinstance(statement, ast.Expr | ast.ImportFrom), ast.unparse(statement)
    return found


def test_exactly_this_text_gives_the_runs_own_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from engine.lab.runs import run

    monkeypatch.setenv("PHILAB_DATA", str(tmp_path / "data"))
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "_public"))
    monkeypatch.delitem(sys.modules, "philab", raising=False)
    made = run(PLANTED, name="It's mine")
    script, names = as_python(PLANTED, name="It's mine"), dict[str, Any]()
    assert script.startswith("import philab\n")
    exec(script, names)
    assert capsys.readouterr().out == f"{made.to_pandas()}\n"
    assert names["finished"].to_pandas().equals(made.to_pandas())
    assert names["finished"].name == "It's mine"


@pytest.mark.parametrize("name", shipped_specs())
def test_every_shipped_spec_reads_back(name: str) -> None:
    spec = read_spec(name).spec
    values = ast.literal_eval(ast.parse(as_python(spec)).body[1].value)  # type: ignore[attr-defined]
    assert parse_spec(values) == spec


@settings(max_examples=60, deadline=None)
@given(TEXT, TEXT)
def test_no_name_breaks_out(name: str, path: str) -> None:
    spec = SelfTestSpec(model=ModelRef(id="m"), dataset=DatasetRef(path=path))
    script = as_python(spec, name=name)
    assert script.encode("utf-8").decode("utf-8").isprintable() or set(script) - set("\n") == {c for c in script if c.isprintable()}
    statements = ast.parse(script).body
    assert [type(statement).__name__ for statement in statements] == ["Import", "Assign", "Assign", "Expr"]
    assert parse_spec(ast.literal_eval(statements[1].value)) == spec  # type: ignore[attr-defined]
    called = calls(script)["finished"]
    assert [(keyword.arg, ast.literal_eval(keyword.value)) for keyword in called.keywords] == [("name", name)]


@settings(max_examples=60, deadline=None)
@given(JSON)
def test_a_literal_is_the_value(value: Any) -> None:
    assert ast.literal_eval(literal(value)) == value


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["layer", "edits", "é"]), JSON), TEXT)
def test_a_call_of_own_code_is_shown_as_it_was(parameters: dict[str, Any], model: str) -> None:
    source = Source(name="my", role="experiment", origin="file", text="'''\nimport os")
    call = CustomCall.model_construct(
        name="my", model=ModelRef.model_construct(id=model, dtype="float16"), parameters=parameters, source=source, edits=()
    )
    shown = calls(as_python(call))
    assert [ast.literal_eval(one) for one in shown["model"].args] == [model]
    assert {one.arg: ast.literal_eval(one.value) for one in shown["model"].keywords} == {"dtype": "float16"}
    assert ast.unparse(shown["finished"].func) == "my.run"
    assert {one.arg: ast.literal_eval(one.value) for one in shown["finished"].keywords} == parameters
