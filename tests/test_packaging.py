"""The lock pins everything, and the wheel works from any folder in an environment that has never seen the checkout."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
import yaml

from engine.settings import ENVIRONMENT
from scripts.serving import free_port, wait_for

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PLATFORM_ONLY = re.compile(r"^(nvidia-|cuda-|triton|pytorch-triton|uvloop|colorama|pywin32|appnope)", re.IGNORECASE)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lock_lines() -> list[str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def wanted() -> list[str]:
    return [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["dev"], *PROJECT["build-system"]["requires"]]


def test_every_line_of_the_lock_is_an_exact_pin_for_every_platform():
    for line in lock_lines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line
        assert not PLATFORM_ONLY.match(line), line


def test_torch_comes_first_in_the_lock():
    assert lock_lines()[0] == "torch==2.13.0"


@pytest.mark.parametrize("requirement", wanted())
def test_every_dependency_is_in_the_lock(requirement: str):
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None
    assert canonical(name[0]) in {canonical(line.split("==")[0]) for line in lock_lines()}


def test_what_is_imported_is_declared():
    """A third-party import that only happens to be installed would break a stranger's environment."""
    import grimp

    graph = grimp.build_graph(
        *("app", "pages", "engine", "db", "scripts"), include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
    )
    external = {module for module in graph.modules if graph.is_module_squashed(module)} - set(sys.stdlib_module_names)
    from importlib.metadata import packages_distributions

    owners = packages_distributions()
    declared = {canonical(re.split(r"[^A-Za-z0-9._-]", line)[0]) for line in PROJECT["project"]["dependencies"]}
    parts = {"pydantic_core", "starlette", "anyio"}  # of pydantic and fastapi, which pin them
    for_developers = {"playwright", "hatchling"}
    for module in external - parts - for_developers:
        assert {canonical(owner) for owner in owners.get(module, [module])} & declared, f"'{module}' is imported but not in pyproject.toml"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return next(folder.glob("*.whl"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """An environment with nothing but the wheel, its dependencies borrowed from this one; commands run in another folder."""

    binaries: Path
    work: Path
    environment: dict[str, str]

    def run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command that ends by itself."""
        line = [self.binaries / name, *arguments]
        return subprocess.run(line, cwd=self.work, env=self.environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def installed(wheel: Path, short_folder: Callable[[str], Path]) -> Elsewhere:
    folder = short_folder("elsewhere")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True, timeout=120)
    binaries, work = folder / "venv" / "bin", folder / "work"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(binaries / "python"),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    asked = [binaries / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    purelib = Path(subprocess.check_output(asked, text=True).strip())
    (purelib / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    work.mkdir()
    environment = {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "HOME": str(folder),
        "PHILAB_DATA": str(folder / "data"),
        "PHILAB_CONFIG": str(folder / "config"),
    }
    return Elsewhere(binaries=binaries, work=work, environment=environment)


def test_everything_travels_in_the_wheel(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    checkout = [
        path.relative_to(ROOT).as_posix()
        for folder in ("pages", "db/migrations", "engine/resources", "app/static")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert len(checkout) > 10
    assert set(checkout) - names == set()
    assert {"app/streamlit.toml", "philab.py", "philab_contribute.py"} <= names
    assert not any(name.startswith(("tests/", "docs/")) for name in names)


def test_the_wheel_explains_itself_anywhere(installed: Elsewhere):
    for line in (("philab", "--help"), ("philab-contribute", "--help"), ("python", "-m", "philab_contribute", "--help")):
        done = installed.run(*line)
        assert (done.returncode, done.stderr) == (0, "")
        assert "contribute" in done.stdout


def test_the_wheel_is_what_runs(installed: Elsewhere):
    code = "import app, engine, philab, scripts.app as a; print(app.__file__, engine.__file__, philab.__file__, len(a._shipped_values()))"
    done = installed.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    *files, values = done.stdout.split()
    assert all("elsewhere" in file for file in files), files
    assert int(values) > 20


def test_the_wheel_shows_the_whole_chain_anywhere(installed: Elsewhere):
    done = installed.run("philab", "demo")
    assert done.returncode == 0, done.stderr
    assert "candidate" in done.stdout
    assert (installed.work / "results" / "demo" / "finding.png").is_file()


def test_the_wheel_serves_pages_and_api_anywhere(installed: Elsewhere, tmp_path: Path):
    port, log = free_port(), tmp_path / "app.log"
    line = [installed.binaries / "philab", "app", "--port", str(port)]
    with log.open("wb") as out:
        server = subprocess.Popen(line, cwd=installed.work, env=installed.environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_for(f"http://127.0.0.1:{port}/api/health", server, log=log)
        answers = {path: requests.get(f"http://127.0.0.1:{port}{path}", timeout=10) for path in ("/", "/api/version", "/api/tasks")}
    finally:
        server.terminate()
        server.wait(timeout=60)
    assert [answer.status_code for answer in answers.values()] == [200, 200, 200]
    assert "text/html" in answers["/"].headers["Content-Type"]
    assert [task["name"] for task in answers["/api/tasks"].json()] == ["Demo: which heads carry induction?"]


def test_compose_sets_only_what_the_settings_know():
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    assert set(compose["services"]) == {"postgres", "web", "worker"}
    assert "healthcheck" in compose["services"]["postgres"]
    for name in ("web", "worker"):
        environment = compose["services"][name]["environment"]
        assert set(environment) - set(ENVIRONMENT) <= {"HF_TOKEN"}
        assert environment["PHILAB_MODE"] == "hosted"


def test_what_compose_wants_to_be_told_is_in_the_example():
    wanted = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "compose.yaml").read_text(encoding="utf-8")))
    example = (ROOT / "deploy" / ".env.example").read_text(encoding="utf-8")
    assert wanted == set(re.findall(r"^([A-Z_]+)=", example, re.MULTILINE))
