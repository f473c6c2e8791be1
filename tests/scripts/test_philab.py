"""The command itself, as a person meets it: in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from engine.provenance import engine_version
from scripts.philab import COMMANDS

ROOT = Path(__file__).resolve().parents[2]


def philab(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-m", "scripts.philab", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_names_every_command():
    done = philab("--help")
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


def test_version():
    assert philab("--version").stdout == f"philab {engine_version()}\n"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["run"], ["run", "x", "--device", "abacus"]])
def test_a_wrong_command_line_is_2_with_its_usage(arguments: list[str]):
    done = philab(*arguments)
    assert done.returncode == 2
    assert "usage: philab" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "no_such_spec"], "spec 'no_such_spec' cannot be read"),
        (["run", "planted_heads", "--preset", "huge"], "unknown preset 'huge'"),
        (["contribute", "list-tasks", "--url", "ftp://x"], "'ftp://x' is not the address of an instance"),
        (["contribute", "list-tasks", "--url", "http://example.org"], "http://example.org is not encrypted"),
        (["contribute", "list-tasks", "--url", "http://127.0.0.1:9"], "http://127.0.0.1:9 does not answer: no connection"),
        (["contribute", "my-runs", "--url", "https://lab.example.org"], "this machine has no key for https://lab.example.org"),
    ],
)
def test_what_goes_wrong_is_one_sentence_with_the_next_step(arguments: list[str], sentence: str, tmp_path: Path):
    done = philab(*arguments, HOME=str(tmp_path), PHILAB_CENTRAL_URL="", PHILAB_API_KEY="")
    assert done.returncode == 1
    assert done.stderr.startswith("philab: ")
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str):
    done = philab(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: philab {name}" in done.stdout
