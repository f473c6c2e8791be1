"""Fixtures of the pages and of the browser journeys: a real server, a real browser."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import requests

from app.services import Services, start_services
from engine.settings import Settings
from engine.spec import DatasetRef, Rows

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def no_component_scan() -> Iterator[None]:
    """Streamlit looks through every installed distribution for packaged components on each first run; we ship none."""
    from streamlit.components.v2.component_manager import BidiComponentManager

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BidiComponentManager, "discover_and_register_components", lambda *_args, **_kwargs: None)
        yield


@pytest.fixture
def start_pages(own_settings: Settings) -> Iterator[Callable[..., Services]]:
    """Starts the services that the pages use, on a database of this test alone; changed settings as keywords."""
    started: list[Services] = []

    def start(**changes: Any) -> Services:
        started.append(start_services(own_settings.model_copy(update=changes)))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def lab_pages(start_pages: Callable[..., Services]) -> Services:
    """A local lab behind the pages: one owner, no worker."""
    return start_pages()


@pytest.fixture
def open_page(no_component_scan: None) -> Callable[..., Any]:
    """Opens a page by name as a browser tab would, with query parameters as keywords; `at` goes on in the same tab."""
    from streamlit.testing.v1 import AppTest

    def opened(name: str, *, at: Any = None, **query: str) -> Any:
        if at is None:
            at = AppTest.from_file(str(ROOT / "app" / "shell.py"), default_timeout=30).run()
        at.switch_page(str(ROOT / "pages" / f"{name}.py"))
        for key, value in query.items():
            at.query_params[key] = value
        return at.run()

    return opened


@pytest.fixture
def do_runs() -> Callable[[Services], None]:
    """Lets a real worker do everything that is queued."""
    from sqlalchemy import func, select

    from app.jobs import WorkerThread
    from db.board import SENDING
    from db.schema import Lease, Run

    def done(running: Services) -> None:
        worker = WorkerThread.started(running.database, running.settings)
        deadline = time.monotonic() + 60
        held = select(Lease.id).where(Lease.id == Run.lease_id, Lease.state == "leased").exists()
        alive = Run.status.in_(("queued", "running")) | ((Run.status == "ok") & held & (Run.finished_at > func.now() - SENDING))
        try:
            while time.monotonic() < deadline:
                with running.database.session() as session:
                    if not session.scalar(select(func.count()).where(alive)):
                        return
                time.sleep(0.2)
            pytest.fail("the worker did not finish within a minute")
        finally:
            worker.stop()

    return done


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """A running app with its own data folder."""

    url: str
    environment: dict[str, str]
    log: Path


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def start_lab() -> Callable[..., Any]:
    """Starts the real app on a free port; use it as a context manager."""
    from contextlib import contextmanager

    @contextmanager
    def started(folder: Path, **environment: str) -> Iterator[Lab]:
        port, log = free_port(), folder / "server.log"
        inherited = {key: value for key, value in os.environ.items() if key not in ("DATABASE_URL", "PHILAB_MODE")}
        environment = {**inherited, "PHILAB_DATA": str(folder / "data"), "PHILAB_CONFIG": str(folder / "config"), **environment}
        command = [sys.executable, "-m", "streamlit", "run", "app/main.py", "--server.port", str(port), "--server.headless", "true"]
        with log.open("wb") as out:
            server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)
        try:
            lab = Lab(url=f"http://127.0.0.1:{port}", environment=environment, log=log)
            _wait_until_healthy(lab, server)
            yield lab
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()

    return started


def _wait_until_healthy(lab: Lab, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert server.poll() is None, f"the server ended early:\n{lab.log.read_text()[-4000:]}"
        try:
            if requests.get(f"{lab.url}/_stcore/health", timeout=2).text == "ok":
                return
        except requests.RequestException:
            time.sleep(0.2)
    pytest.fail(f"the server did not answer:\n{lab.log.read_text()[-4000:]}")


@pytest.fixture(scope="session")
def lab(start_lab: Callable[..., Any], short_folder: Callable[[str], Path]) -> Iterator[Lab]:
    """One local lab for all journeys of this session: embedded Postgres, a worker inside."""
    with start_lab(short_folder("lab")) as running:
        yield running


@pytest.fixture(scope="session")
def answered_task(lab: Lab) -> UUID:
    """A task in `lab` whose three shards were each really run for three people by the worker of the app, so that a finding stands."""
    from db import leases, runs, work
    from db.connection import open_database
    from db.contributors import ensure_owner, register
    from db.keys import read_pepper
    from db.tasks import create_task, draft_from, get_task
    from db.viewer import Viewer
    from engine.settings import read_settings
    from engine.spec import read_spec

    settings = read_settings(lab.environment)
    spec = read_spec("planted_heads").spec.model_copy(update={"dataset": DatasetRef(name="planted_induction", rows=Rows(start=0, stop=24))})
    wanted = {"name": "Which heads copy?", "hypothesis": "Two of them do.", "spec": spec.model_dump(mode="json"), "delta": 0.05}
    database = open_database(settings, migrate=False)
    try:
        with database.session() as session:
            owner = ensure_owner(session, settings)
            task_id = create_task(session, owner, draft_from({**wanted, "n_shards": 3, "replicas": 3})).id
            for name in ("ada", "bela", "chidi"):
                person = register(session, username=name, email=None, pepper=read_pepper(settings))
                viewer = Viewer(contributor_id=person.contributor_id, role="contributor")
                while lease := leases.lease_idle(session, viewer, task_id):
                    work.start_run(session, viewer, lease.spec, name=f"{name} {lease.shard_no}", task_id=task_id, lease_id=lease.id)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with database.session() as session:
                if get_task(session, owner, task_id).status == "completed":
                    return task_id
            time.sleep(0.5)
        with database.session() as session:
            states = [(run.status, run.error, run.progress_message) for run in runs.list_runs(session, owner).rows]
        pytest.fail(f"the app did not finish the task: {states}")
    finally:
        database.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A real Chromium of this machine, else Playwright's own."""
    from playwright.sync_api import Error, expect, sync_playwright

    expect.set_options(timeout=20_000)
    found = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        try:
            launched = playwright.chromium.launch(executable_path=found, args=CHROMIUM_FLAGS)
        except Error as missing:
            pytest.skip(
                f"NO BROWSER: the journeys were NOT run. Install chromium (make test does it where it can). {missing.message[:200]}"
            )
        yield launched
        launched.close()
