"""The remote client against the real routes of a real server: it gives the same values as the database behind them."""

import http.server
import threading
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from app.services import Services
from db import contributors, findings, submission_views, tasks
from db.remote import RemoteCommunity
from db.submission_views import SubmissionFilter
from db.viewer import Viewer
from engine.errors import CommunityUnreachable, NotAllowed, NotFound, SpecError
from tests.community import fill, join, make_task

VISITOR = Viewer.visitor()


@pytest.fixture
def people(lab: Services) -> list[Viewer]:
    with lab.database.session() as session:
        return [join(session, f"person-{number}") for number in range(4)]


@pytest.fixture
def task_id(lab: Services, people: list[Viewer]) -> Any:
    with lab.database.session() as session:
        task = make_task(session, people[0])
        fill(session, people, task.id, telemetry={"layers": [1]})
        return task.id


@pytest.fixture
def remote(server: str) -> Iterator[RemoteCommunity]:
    client = RemoteCommunity(server)
    yield client
    client.close()


def test_every_question_has_the_same_answer_from_afar(lab: Services, people: list[Viewer], task_id: Any, remote: RemoteCommunity) -> None:
    ada = people[0].contributor_id
    assert ada is not None
    with lab.database.session() as session:
        assert remote.list_tasks() == tasks.list_tasks(session, VISITOR)
        assert remote.list_tasks("completed", 1) == tasks.list_tasks(session, VISITOR, "completed", 1)
        assert remote.get_task(task_id) == tasks.get_task(session, VISITOR, task_id)
        assert remote.list_findings(task_id) == findings.list_findings(session, VISITOR, task_id)
        top = findings.list_findings(session, VISITOR, task_id)[0]
        assert remote.get_finding(top.id) == top
        assert remote.list_findings(min_confidence=0.9, finding_type="head_effect", status="candidate") == [top]
        wanted = SubmissionFilter(task_id=task_id, contributor_id=ada, status="accepted", layer=0, since=top.created_at.replace(year=2001))
        mine = submission_views.list_submissions(session, VISITOR, wanted)
        assert mine
        assert remote.list_submissions(wanted) == mine
        assert remote.get_submission(mine[0].id) == submission_views.get_submission(session, VISITOR, mine[0].id)
        assert remote.leaderboard("compute_time", 2) == contributors.leaderboard(session, "compute_time", 2)
        assert remote.profile(ada) == contributors.profile(session, ada)
        assert remote.stats() == submission_views.stats(session)


def test_own_submissions_need_a_key(lab: Services, task_id: Any, remote: RemoteCommunity, server: str) -> None:
    with pytest.raises(NotAllowed):
        remote.list_submissions(mine=True)
    key = (lab.settings.config_dir / "owner-key").read_text().strip()
    mine = RemoteCommunity(server, key)
    assert mine.list_submissions(mine=True) == []
    mine.close()


def test_faults_come_back_as_what_they_were(remote: RemoteCommunity, server: str) -> None:
    with pytest.raises(NotFound, match="there is no task"):
        remote.get_task(uuid4())
    with pytest.raises(SpecError):
        remote.list_tasks("lost")
    wrong = RemoteCommunity(server, "plk_wrong")
    with pytest.raises(NotAllowed, match="API key"):
        wrong.list_tasks()
    wrong.close()
    with pytest.raises(SpecError, match="https"):
        RemoteCommunity("file:///etc/passwd")


def test_nobody_there() -> None:
    away = RemoteCommunity("http://127.0.0.1:1")
    with pytest.raises(CommunityUnreachable, match="does not answer"):
        away.list_tasks()


class Page(http.server.BaseHTTPRequestHandler):
    """Something on the web that is no instance."""

    answers = {  # noqa: RUF012
        "/html": (200, "text/html", b"<html></html>"),
        "/moved": (302, "application/json", b"{}"),
        "/broken": (200, "application/json", b"{"),
        "/other": (200, "application/json", b'[{"id": 1}]'),
        "/ill": (500, "application/json", b'{"message": "m"}'),
    }

    def do_GET(self) -> None:
        status, kind, body = self.answers["/" + self.path.split("/")[1]]
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Location", "http://127.0.0.1:1/")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as page:
        thread = threading.Thread(target=page.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{page.server_address[1]}"
        page.shutdown()
        thread.join()


@pytest.mark.parametrize("path", sorted(Page.answers))
def test_what_is_no_instance_is_said_to_be_none(web: str, path: str) -> None:
    remote = RemoteCommunity(f"{web}{path}")
    with pytest.raises(CommunityUnreachable):
        remote.list_tasks()
    remote.close()
