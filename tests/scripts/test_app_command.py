import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import app
from scripts.app import main


def test_a_port_that_is_taken_is_said_with_the_next_step(capsys: pytest.CaptureFixture[str]):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 1
    assert capsys.readouterr().err == f"philab: port {port} on 127.0.0.1 is taken. Choose another one: philab app --port {port + 1}.\n"


def test_a_lab_without_sign_in_stays_on_this_machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("PHILAB_MODE", "local")
    assert main(["--host", "0.0.0.0"]) == 1
    assert "PHILAB_MODE=hosted" in capsys.readouterr().err


def test_the_theme_is_passed_on_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from streamlit import config

    monkeypatch.chdir(tmp_path)
    values = app._shipped_values()
    assert len(values) > 20
    assert set(values) <= {option.env_var for option in config._config_options_template.values()}


def test_streamlit_takes_the_values_from_the_environment(tmp_path: Path):
    environment = {**app._shipped_values(), **os.environ}
    told = subprocess.check_output([sys.executable, "-m", "streamlit", "config", "show"], cwd=tmp_path, env=environment, text=True)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", told)
    for line in ("maxUploadSize = 16", "gatherUsageStats = false", 'backgroundColor = "#0f172a"'):
        assert re.search(rf"^{re.escape(line)}$", plain, re.MULTILINE), line


def test_the_page_server_is_started_with_the_environment_on_top(monkeypatch: pytest.MonkeyPatch):
    started = list[tuple[list[str], dict[str, str]]]()
    monkeypatch.setattr(app, "_become", lambda line, environment: started.append((line, environment)) or 0)
    monkeypatch.setenv("STREAMLIT_SERVER_MAX_UPLOAD_SIZE", "1")
    assert main(["--port", "0"]) == 0
    line, environment = started[0]
    assert Path(line[4]).is_file()
    assert environment["STREAMLIT_SERVER_MAX_UPLOAD_SIZE"] == "1"
