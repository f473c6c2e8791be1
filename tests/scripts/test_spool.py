"""Sending over a real HTTP server that misbehaves on demand."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from engine.errors import CommunityUnreachable, NotAllowed, NotFound, RateLimited, SubmissionRefused
from scripts.community import Community
from scripts.contributor_home import ContributorHome
from scripts.spool import Spool, Waiting, deliver


@dataclass
class Instance:
    """What the server was asked, and what it answers next: status, headers, body; or None to cut the line after reading."""

    url: str = ""
    answers: list[tuple[int, dict[str, str], str] | None] = field(default_factory=list)
    asked: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)


@contextmanager
def serving() -> Iterator[Instance]:
    instance = Instance()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            instance.asked.append((self.path, dict(self.headers), body))
            answer = instance.answers.pop(0) if instance.answers else (201, {}, '{"id": "s1", "status": "waiting", "view_url": "/x"}')
            if answer is None:
                self.close_connection = True
                return
            status, headers, text = answer
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(text)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    instance.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield instance
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def instance() -> Iterator[Instance]:
    with serving() as running:
        yield running


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(ContributorHome(tmp_path / "home"))


def one(spool: Spool, instance: Instance) -> Waiting:
    return spool.add(url=instance.url, task_id="t", body='{"task_id": "t"}')


def ready(status: int, text: str, **headers: str) -> tuple[int, dict[str, str], str]:
    return status, headers, json.dumps({"message": text})


def test_a_result_is_on_disk_before_it_is_sent(spool: Spool, instance: Instance):
    waiting = one(spool, instance)
    assert spool.waiting() == [waiting]
    assert instance.asked == []


def test_what_is_taken_leaves_the_spool(spool: Spool, instance: Instance):
    waiting = one(spool, instance)
    answer = deliver(spool, waiting, Community(instance.url, "plk_key"))
    assert answer.body["id"] == "s1"
    assert spool.waiting() == []
    path, headers, body = instance.asked[0]
    assert (path, body.decode()) == ("/api/platform/results", waiting.body)
    assert (headers["X-API-Key"], headers["Idempotency-Key"]) == ("plk_key", waiting.idempotency_key)


def test_a_lost_answer_is_asked_again_with_the_same_key_and_bytes(spool: Spool, instance: Instance):
    instance.answers = [None, ready(503, "down"), ready(409, "in flight")]
    slept = list[float]()
    deliver(spool, one(spool, instance), Community(instance.url), sleep=slept.append)
    assert len(instance.asked) == 4
    assert len({(headers["Idempotency-Key"], body) for _, headers, body in instance.asked}) == 1
    assert len(slept) == 3


def test_the_instance_may_ask_for_patience(spool: Spool, instance: Instance):
    instance.answers = [(429, {"Retry-After": "7"}, '{"message": "slow"}')]
    slept = list[float]()
    deliver(spool, one(spool, instance), Community(instance.url), sleep=slept.append)
    assert slept[0] >= 7


def test_after_enough_patience_it_stays_in_the_spool(spool: Spool, instance: Instance):
    instance.answers = [ready(500, "broken")] * 50
    waiting = one(spool, instance)
    with pytest.raises(CommunityUnreachable, match="sync"):
        deliver(spool, waiting, Community(instance.url), patience_s=5, sleep=lambda _: None)
    assert spool.waiting() == [waiting]


def test_what_is_refused_is_kept_with_the_reason(spool: Spool, instance: Instance, tmp_path: Path):
    instance.answers = [ready(422, "another question than the task asks")]
    waiting = one(spool, instance)
    with pytest.raises(SubmissionRefused, match="another question"):
        deliver(spool, waiting, Community(instance.url))
    assert spool.waiting() == []
    kept = json.loads((tmp_path / "home" / "rejected" / f"{waiting.idempotency_key}.json").read_text(encoding="utf-8"))
    assert (kept["reason"], kept["body"]) == ("another question than the task asks", waiting.body)


def test_a_key_that_is_no_longer_good_loses_nothing(spool: Spool, instance: Instance):
    instance.answers = [ready(401, "unknown key")]
    waiting = one(spool, instance)
    with pytest.raises(NotAllowed, match="unknown key"):
        deliver(spool, waiting, Community(instance.url))
    assert spool.waiting() == [waiting]


@pytest.mark.parametrize("count", [25, pytest.param(20_000, marks=pytest.mark.torture)])
def test_through_faults_of_every_kind_nothing_is_lost_or_sent_with_another_key(count: int, spool: Spool, instance: Instance):
    """The line is cut, the instance is busy, down or slow, the sender gives up and comes back: all results arrive, each with one key."""
    seed = random.Random(count)
    faults = [None, ready(500, "broken"), ready(503, "down"), ready(429, "slow", **{"Retry-After": "1"}), ready(409, "in flight")]
    kept = [spool.add(url=instance.url, task_id="t", body=json.dumps({"number": number})) for number in range(count)]
    community, rounds = Community(instance.url), 0
    while spool.waiting():
        rounds += 1
        assert rounds < 100
        for waiting in spool.waiting():
            good: tuple[int, dict[str, str], str] = (201, {}, '{"id": "s", "status": "waiting", "view_url": "/x"}')
            instance.answers = [*seed.choices(faults, k=seed.randrange(4)), good]
            with suppress(CommunityUnreachable):
                deliver(spool, waiting, community, patience_s=seed.choice([0.0, 60.0]), sleep=lambda _: None)
    arrived: dict[str, set[bytes]] = {}
    for _, headers, body in instance.asked:
        arrived.setdefault(headers["Idempotency-Key"], set()).add(body)
    assert arrived == {waiting.idempotency_key: {waiting.body.encode()} for waiting in kept}


def test_files_of_others_in_the_spool_are_left_alone(spool: Spool, instance: Instance, tmp_path: Path):
    one(spool, instance)
    (tmp_path / "home" / "spool" / "note.json").write_text("[]", encoding="utf-8")
    assert len(spool.waiting()) == 1


def test_nobody_there_is_said_in_a_sentence():
    with serving() as gone:
        url = gone.url
    with pytest.raises(CommunityUnreachable, match="no connection"):
        Community(url).get("/tasks")


def test_pages_are_not_mistaken_for_an_instance(instance: Instance):
    instance.answers = [(200, {"Content-Type": "text/html"}, "<html></html>")]
    with pytest.raises(CommunityUnreachable, match="no philab instance"):
        Community(instance.url).get("/tasks")


def test_a_key_does_not_follow_a_redirect(instance: Instance):
    instance.answers = [(302, {"Location": "https://elsewhere.example.org"}, "{}")]
    with pytest.raises(CommunityUnreachable, match=r"points to https://elsewhere\.example\.org"):
        Community(instance.url, "plk_key").get("/tasks")
    assert len(instance.asked) == 1


@pytest.mark.parametrize(
    ("status", "leaf"), [(401, NotAllowed), (403, NotAllowed), (404, NotFound), (429, RateLimited), (502, CommunityUnreachable)]
)
def test_statuses_become_our_errors(status: int, leaf: type[Exception], instance: Instance):
    instance.answers = [ready(status, "the sentence of the instance")]
    with pytest.raises(leaf, match="the sentence of the instance"):
        Community(instance.url).get("/tasks")


@pytest.mark.parametrize("url", ["http://example.org", "http://192.0.2.1:8000"])
def test_a_key_never_travels_unencrypted(url: str):
    with pytest.raises(NotAllowed, match="not encrypted"):
        Community(url, "plk_key")
    Community(url, "plk_key", insecure=True)
