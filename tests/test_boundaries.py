"""What the import contracts cannot say: what is loaded when, and names that would shadow others."""

import ast
import subprocess
import sys
import sysconfig
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("app", "pages", "engine", "db", "scripts")
HEAVY = ("torch", "streamlit", "sqlalchemy", "transformers", "altair", "fastapi", "scipy", "pandas")

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def loaded_after(code: str) -> set[str]:
    done = python(f"{code}\nimport sys; print('\\n' + ' '.join(sys.modules))")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "module",
    [
        *("engine.spec", "engine.result", "engine.provenance", "engine.settings", "engine.presets", "engine.recorder", "engine.store"),
        *(
            "engine.model_presets",
            "engine.models.memory",
            "engine.custom",
            "engine.as_python",
            "engine.folder",
            "engine.text.datasets",
            "engine.evidence.submission",
            "engine.evidence.validation",
            "engine.evidence.finding",
        ),
    ],
)
def test_values_and_rules_load_no_torch(module: str):
    assert loaded_after(f"import {module}").isdisjoint({"torch", "transformers", "streamlit", "sqlalchemy"})


@pytest.mark.parametrize("module", ["philab", "scripts.philab", "engine.spec"])
def test_importing_costs_next_to_nothing(module: str):
    assert loaded_after(f"import {module}").isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], ["specs"], ["models"], ["run", "--help"], ["contribute", "--help"], ["contribute", "run", "--help"]]
)
def test_help_loads_nothing_heavy(argv: list[str]):
    code = f"import scripts.philab\ntry: scripts.philab.main({argv!r})\nexcept SystemExit as done: assert not done.code"
    assert loaded_after(code).isdisjoint(HEAVY)


@pytest.mark.parametrize("module", ["philab_contribute", "scripts.contribute", "scripts.run_experiment", "scripts.execution"])
def test_contributors_load_no_torch_before_the_run_and_never_pages_or_sql(module: str):
    assert loaded_after(f"import {module}").isdisjoint(HEAVY)


def test_a_whole_run_loads_neither_pages_nor_sql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PHILAB_DATA", str(tmp_path / "data"))
    spec = tmp_path / "small.yaml"
    spec.write_text(
        "kind: ablation\nmodel: {id: planted-induction}\ndataset: {name: planted_induction, rows: {start: 0, stop: 2}}\nheads: [1]\n",
        encoding="utf-8",
    )
    argv = ["run", str(spec), "--device", "cpu", "--out", str(tmp_path / "run")]
    code = f"import scripts.philab; assert scripts.philab.main({argv!r}) == 0"
    loaded = loaded_after(code)
    assert "torch" in loaded
    assert loaded.isdisjoint({"streamlit", "sqlalchemy", "psycopg", "altair", "fastapi", "db", "app"})


@pytest.mark.parametrize("package", ["app.api", "app.api.server", "db"])
def test_an_instance_can_serve_without_torch(package: str):
    names = [package] if package != "db" else [f"db.{file.stem}" for file in sorted((ROOT / "db").glob("*.py"))]
    code = BLOCKED.format(names={"torch", "transformers", "safetensors", "tokenizers", "accelerate", "bitsandbytes"})
    done = python(code + "\n".join(f"import {name}" for name in names))
    assert done.returncode == 0, done.stderr


def test_the_arrows_hold():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_module_imports_itself_over_others():
    """Cycles among modules; what is imported inside a function or for types only is not run at import time."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    at_import = {module: _imported_on_load(module) & graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert _cycle(at_import) == []


def test_a_cycle_would_be_found():
    assert _cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) != []


def test_no_other_distribution_brings_our_names():
    for name in (*PACKAGES, "philab", "philab_contribute"):
        assert set(packages_distributions().get(name, [])) <= {"philab"}, f"'{name}' belongs to another distribution as well"


def test_no_module_of_app_shadows_another_package():
    """`streamlit run app/main.py` puts app/ itself first on the path."""
    site_packages = Path(sysconfig.get_path("purelib"))
    installed = {path.stem for path in site_packages.iterdir() if path.suffix in {"", ".py", ".so"} and not path.name.startswith("_")}
    taken = (set(sys.stdlib_module_names) | installed | set(PACKAGES)) - {"__pycache__"}
    ours = {path.stem for path in (ROOT / "app").iterdir() if path.suffix in {"", ".py"} and not path.name.startswith(("_", "."))}
    assert ours & taken == set()


def test_there_are_no_packages_below_tests():
    assert [*(ROOT / "tests").rglob("__init__.py")] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_has_no_side_effects(package: str):
    """No module of ours calls print, makes folders, or starts threads while it is imported."""
    loud = ("print", "makedirs", "mkdir", "Thread", "basicConfig")
    for file in (ROOT / package).rglob("*.py"):
        if package == "pages" or "migrations" in file.parts or file.name == "shell.py":
            continue
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                called = node.value.func
                name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
                assert name not in loud, f"{file}:{node.lineno} calls {name} at import"


def _imported_on_load(module: str) -> set[str]:
    """Modules that stand in import statements outside of functions."""
    base = ROOT / Path(*module.split("."))
    file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    if not file.is_file():
        return set()
    found = set[str]()
    todo: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while todo:
        for node in ast.iter_child_nodes(todo.pop()):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                todo.append(node)
    return found


def _cycle(imports: dict[str, set[str]]) -> list[str]:
    """What is left after modules that import nothing of the rest are taken away, again and again."""
    left = {module: set(targets) for module, targets in imports.items()}
    while leaves := [module for module, targets in left.items() if not targets & left.keys()]:
        for leaf in leaves:
            del left[leaf]
    while tops := [module for module in left if not any(module in targets for targets in left.values())]:
        for top in tops:
            del left[top]
    return sorted(left)
