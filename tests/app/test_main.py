"""The web process as a whole: what it serves, and what it says when it cannot start."""

import subprocess
import sys
from pathlib import Path

import requests

from tests.plugin_app import ROOT, Lab, free_port


def test_pages_and_api_share_one_port(lab: Lab):
    assert "<title>" in requests.get(lab.url, timeout=20).text
    assert requests.get(f"{lab.url}/api/health", timeout=20).json()["status"] == "ok"
    assert requests.get(f"{lab.url}/api", timeout=20).url == f"{lab.url}/api/docs"
    missing = requests.get(f"{lab.url}/api/nothing", timeout=20)
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/json")


def test_without_a_database_it_ends_with_one_sentence(tmp_path: Path):
    environment = {
        "PATH": "/usr/bin:/bin",
        "DATABASE_URL": "postgresql://nobody:secret@127.0.0.1:9/none",
        "PHILAB_DATA": str(tmp_path / "data"),
        "PHILAB_CONFIG": str(tmp_path / "config"),
    }
    command = [sys.executable, "-m", "streamlit", "run", "app/main.py", "--server.port", str(free_port()), "--server.headless", "true"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "philab cannot start: the database at 127.0.0.1:9/none cannot be reached" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "secret" not in done.stdout + done.stderr
