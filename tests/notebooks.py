"""Notebooks, run for real in a kernel of their own. `python -m tests.notebooks FILE...` runs them and stores what comes out."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = (ROOT, ROOT / "scripts" / "_public")
"""Where `import philab` and what it needs is found, whatever is installed."""


def executed(file: Path, folder: Path) -> Any:
    """The notebook with the outputs of a fresh run, which keeps its data in `folder`."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(file, as_version=4)
    path = os.pathsep.join([*map(str, PUBLIC), os.environ.get("PYTHONPATH", "")])
    own = {"PHILAB_DATA": str(folder / "data"), "PHILAB_CONFIG": str(folder / "config"), "IPYTHONDIR": str(folder / "ipython")}
    quiet = {"PYTHONWARNINGS": "ignore:IProgress not found"}  # a hint about progress bars, on what is installed here
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--log-level=ERROR"],
    )
    client.execute(env={**os.environ, **own, **quiet, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
    notebook.metadata.language_info = {"name": "python"}  # its version would differ from machine to machine
    return notebook


def main(files: list[str]) -> None:
    """Runs notebooks and stores them with their outputs."""
    import nbformat

    for file in files:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(executed(Path(file), Path(folder)), file)


if __name__ == "__main__":
    main(sys.argv[1:])
