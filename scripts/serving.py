"""Servers that a command starts for itself: a free port, and knowing when somebody answers there."""

import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

from engine.errors import CommunityUnreachable

START_S = 60.0
"""How long a server may take to come up."""


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(
    url: str, process: "subprocess.Popen[bytes] | subprocess.Popen[str]", *, log: Path | None = None, within_s: float = START_S
) -> None:
    """Returns when the address answers with status 200.

    Raises:
        CommunityUnreachable: the process ended, or the time is over.
    """
    give_up = time.monotonic() + within_s
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise CommunityUnreachable(f"the server ended with exit code {process.returncode}.", next_step=_words(log))
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise CommunityUnreachable(f"{url} did not answer within {within_s:.0f} s.", next_step="Is the machine very busy? Try again.")


def _words(log: Path | None) -> str:
    """The server's own last words, or where they are."""
    if log is None:
        return "Its own words are above."
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"Its last words: {lines[-1]}" if lines else f"Its log is {log}."
