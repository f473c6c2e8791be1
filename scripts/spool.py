"""Results that wait to be sent. A result is on disk, whole, before the first try; it leaves only after a final answer."""

import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from engine.errors import CommunityUnreachable, StoreError, SubmissionRefused
from engine.store import write_atomically
from scripts.community import Answer, Community, raised
from scripts.contributor_home import ContributorHome

LONGEST_WAIT_S = 1024.0
"""Upper end of the back-off between two tries."""

GONE_FOR_GOOD = range(400, 500)
WORTH_ANOTHER_TRY = {408, 409, 425, 429}
"""4xx statuses that are not an answer to the content: timed out, the same key in flight, too many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A submission on disk: where it goes, and the exact bytes, so that every try sends the same."""

    idempotency_key: str
    url: str
    task_id: str
    body: str


class Spool:
    """The folders `spool` and `rejected` of a contributor."""

    def __init__(self, home: ContributorHome) -> None:
        """Makes nothing yet."""
        self._home = home

    def add(self, *, url: str, task_id: str, body: str) -> Waiting:
        """Puts a finished submission on disk: temporary file, fsync, rename.

        Raises:
            StoreError: there is no room.
        """
        waiting = Waiting(idempotency_key=str(uuid4()), url=url, task_id=task_id, body=body)
        file = self._file(waiting)
        try:
            write_atomically(file, json.dumps(asdict(waiting)).encode())
        except OSError as failed:
            raise StoreError(f"{file} cannot be written: {failed.strerror}.", next_step="Free some space, then run again.") from failed
        return waiting

    def waiting(self) -> list[Waiting]:
        """What is still to be sent, oldest first; files that are not ours are left alone."""
        found = list[Waiting]()
        for file in sorted(self._home.make(self._home.folder / "spool").glob("*.json"), key=lambda file: file.stat().st_mtime):
            try:
                found.append(Waiting(**json.loads(file.read_bytes())))
            except (OSError, ValueError, TypeError):
                continue
        return found

    def sent(self, waiting: Waiting) -> None:
        """Forgets it: the instance has it."""
        self._file(waiting).unlink(missing_ok=True)

    def reject(self, waiting: Waiting, reason: str) -> Path:
        """Moves it to `rejected`, with the reason; returns where it lies now."""
        target = self._home.make(self._home.folder / "rejected") / f"{waiting.idempotency_key}.json"
        write_atomically(target, json.dumps({**asdict(waiting), "reason": reason}).encode())
        self.sent(waiting)
        return target

    def _file(self, waiting: Waiting) -> Path:
        return self._home.make(self._home.folder / "spool") / f"{waiting.idempotency_key}.json"


def deliver(
    spool: Spool, waiting: Waiting, community: Community, *, patience_s: float = 60.0, sleep: Callable[[float], None] = time.sleep
) -> Answer:
    """Sends a submission until the instance has answered for good.

    Args:
        spool: where it waits.
        waiting: the submission.
        community: the instance, as the person whose result it is.
        patience_s: gives up for now after so many seconds of waiting; the submission stays in the spool.
        sleep: waits.

    Raises:
        SubmissionRefused: the instance does not take it; it lies in `rejected` now.
        CommunityUnreachable: no answer yet; it is still in the spool.
        NotAllowed: the key is no longer good; it is still in the spool.
    """
    waited, tries = 0.0, 0
    while True:
        answer, trouble = _try(community, waiting)
        if answer is not None and answer.status < 400:
            spool.sent(waiting)
            return answer
        if answer is not None and answer.status == 401:
            raised(answer)
        if answer is not None and answer.status in GONE_FOR_GOOD and answer.status not in WORTH_ANOTHER_TRY:
            file = spool.reject(waiting, answer.message)
            raise SubmissionRefused(
                f"{waiting.url} refused the result: {answer.message}", reason="refused", next_step=f"It is kept in {file}."
            )
        pause = _pause(tries, answer)
        if waited + pause > patience_s:
            raise CommunityUnreachable(
                f"the result is done but not sent yet: {trouble}", next_step="It is kept; send it with: philab contribute sync."
            )
        sleep(pause)
        waited, tries = waited + pause, tries + 1


def _try(community: Community, waiting: Waiting) -> tuple[Answer | None, str]:
    try:
        answer = community.call("POST", "/results", raw=waiting.body.encode(), headers={"Idempotency-Key": waiting.idempotency_key})
    except CommunityUnreachable as lost:
        return None, lost.message
    return answer, answer.message


def _pause(tries: int, answer: Answer | None) -> float:
    """Full jitter below a doubling cap, and never earlier than the instance asks."""
    jitter = random.uniform(0.0, min(LONGEST_WAIT_S, 2.0**tries))
    return max(jitter, answer.retry_after_s or 0.0) if answer else jitter
