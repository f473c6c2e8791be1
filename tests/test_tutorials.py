"""What the tutorials and the README show in Python is what comes out."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.notebooks import PUBLIC, ROOT, executed

NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


def shown(notebook: Any) -> list[str]:
    """What people read below each cell of code."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return ["".join(output.get("text", "") or output.data["text/plain"] for output in cell.outputs) for cell in cells]


@pytest.mark.filterwarnings("default")  # of the libraries that speak to the kernel
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_shows_what_comes_out(file: Path, tmp_path: Path) -> None:
    """Numbers to 1 % or 0.05, as sums round differently on other machines; all else to the letter."""
    import nbformat

    stored, fresh = shown(nbformat.read(file, as_version=4)), shown(executed(file, tmp_path))
    for old, new in zip(stored, fresh, strict=True):
        assert NUMBER.sub("#", re.sub(r"[ -]+", " ", old)) == NUMBER.sub("#", re.sub(r"[ -]+", " ", new))
        for one, other in zip(NUMBER.findall(old), NUMBER.findall(new), strict=True):
            assert float(one) == pytest.approx(float(other), rel=0.01, abs=0.05)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_stored_whole_and_small(file: Path) -> None:
    import nbformat

    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert file.stat().st_size < 200_000
    for target in re.findall(r"\]\(([^)#\s]+)\)", "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")):
        assert "://" in target or (file.parent / target).exists(), target


def test_the_example_of_the_readme_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    [example] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.setenv("PHILAB_DATA", str(tmp_path))
    monkeypatch.syspath_prepend(str(PUBLIC[-1]))
    monkeypatch.delitem(sys.modules, "philab", raising=False)
    exec(example, {})
    printed = capsys.readouterr().out
    assert "[1, 14, 160]) [' James']" in printed
    assert "[' Mark.', ' James.']" in printed
    assert "logit_diff" in printed
    assert len([line for line in example.splitlines() if line]) == 10
