"""Nothing a user can meet is undocumented."""

import ast
import re
import runpy
from pathlib import Path

import pytest

from db import schema
from engine import errors
from engine.model_presets import model_presets
from engine.presets import presets
from engine.result import RESULTS
from engine.settings import ENVIRONMENT, Section, Settings
from engine.spec.any import KINDS
from scripts import contribute, philab

ROOT = Path(__file__).resolve().parents[1]


def text(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def leaves(kind: type) -> list[type]:
    return [found for below in kind.__subclasses__() for found in [below, *leaves(below)]]


def keys(section: type[Section], prefix: str = "") -> list[str]:
    found = list[str]()
    for name, field in section.model_fields.items():
        inner = field.annotation
        nested = isinstance(inner, type) and issubclass(inner, Section)
        found += keys(inner, f"{prefix}{name}.") if nested else [f"{prefix}{name}"]
    return found


@pytest.mark.parametrize("name", philab.COMMANDS)
def test_every_command(name: str):
    assert f"`philab {name}`" in text("operations.md")


@pytest.mark.parametrize("name", contribute.COMMANDS)
def test_every_command_of_contributors(name: str):
    assert f"| `{name}` |" in text("contribute-compute.md")


@pytest.mark.parametrize("key", keys(Settings))
def test_every_setting(key: str):
    assert f"| `{key}` |" in text("operations.md")


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_every_environment_variable(name: str):
    assert f"`{name}`" in text("operations.md")


@pytest.mark.parametrize("leaf", leaves(errors.LabError), ids=lambda leaf: leaf.__name__)
def test_every_error(leaf: type[errors.LabError]):
    assert f"| `{leaf.__name__}` | `{leaf.code}` |" in text("operations.md")


def test_every_name_of_the_python_module():
    named = runpy.run_path(str(ROOT / "scripts" / "_public" / "philab.py"))["__all__"]
    table = text("tutorials/README.md")
    assert [name for name in named if f"`{name}`" not in table and f"philab.{name}" not in table] == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_spec_and_its_fields(kind: str):
    entry = text("methods.md").split(f"## `{kind}`")[1].split("\n## ")[0]
    for field in KINDS[kind].model_fields:
        assert f"`{field}`" in entry, field
    for part in ("**Formula.**", "**Sources.**", "**What the number does not mean.**"):
        assert part in entry


def test_every_kind_of_result_has_a_method():
    assert set(KINDS) == set(RESULTS)


@pytest.mark.parametrize("name", presets())
def test_every_preset(name: str):
    assert f"`{name}`" in text("methods.md")


@pytest.mark.parametrize("key", model_presets())
def test_every_model_with_a_short_name(key: str):
    assert f"`{key}`" in text("models.md")


@pytest.mark.parametrize("file", sorted((ROOT / "pages").glob("[a-z]*.py")), ids=lambda file: file.stem)
def test_every_page(file: Path):
    assert f"| `{file.stem}` |" in text("architecture.md")


@pytest.mark.parametrize("name", schema.Table.metadata.tables)
def test_every_table(name: str):
    assert f"| `{name}` |" in text("data-model.md")


@pytest.mark.parametrize("status", schema.FINDING_STATUSES)
def test_every_status_of_a_finding(status: str):
    assert f"| **{status}** |" in text("glossary.md")


def test_every_make_target_says_what_it_is():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in ("demo", "app", "worker", "test", "check", "torture", "screenshot"):
        assert re.search(rf"^{name}:.*## \S", makefile, re.MULTILINE), name


@pytest.mark.parametrize("file", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]), ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(file: Path):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", file.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (file.parent / target).exists(), target


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "decisions").glob("*.md")), ids=lambda file: file.stem)
def test_decisions_are_guarded_by_tests_that_exist(file: Path):
    body = file.read_text(encoding="utf-8")
    for part in ("**Question.**", "**Options.**", "**Choice.**", "**Consequence.**", "**Guarded by**"):
        assert part in body
    for target in re.findall(r"`((?:tests|db|app)/[\w/.]+)`", body):
        assert (ROOT / target).exists(), target


def test_commands_in_the_readme_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"\.venv/bin/philab (\w+)", readme):
        assert name in philab.COMMANDS
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in re.findall(r"\bmake (\w+)", readme):
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


def test_every_public_name_has_a_docstring_in_the_errors():
    tree = ast.parse((ROOT / "engine" / "errors.py").read_text(encoding="utf-8"))
    for leaf in leaves(errors.LabError):
        assert leaf.__name__ in (ast.get_docstring(tree) or "")
