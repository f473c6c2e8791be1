"""`philab worker`: works off queued runs until it is stopped. Run it on as many machines as you like."""

import argparse
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event

from db.connection import Database, open_database
from db.work import STALLED_S, start_worker
from engine.errors import DatabaseUnavailable
from engine.settings import Settings, read_settings
from scripts.exit_code import command

RESTART_ME = 75  # EX_TEMPFAIL: a supervisor starts the worker again


@command
def main(argv: Sequence[str]) -> int:
    """Works until SIGTERM or Ctrl-C; the run at hand goes back into the queue. 75 when the database was lost on the way."""
    asked = _parser().parse_args(argv)
    logging.getLogger("procrastinate").setLevel(logging.CRITICAL)  # it tells of a lost database in tracebacks, we in one sentence
    settings = read_settings()
    database = open_database(settings)
    try:
        return _work(database, settings, stalled_s=asked.stalled_s)
    finally:
        database.close()


def _work(database: Database, settings: Settings, *, stalled_s: float) -> int:
    with _stop_on_signal() as stop:
        try:
            start_worker(database, settings, stop=stop, stalled_s=stalled_s, on_ready=lambda: print("worker ready", flush=True))
        except DatabaseUnavailable as lost:
            print(f"philab worker: {lost}", file=sys.stderr)
            return RESTART_ME
    return 0


@contextmanager
def _stop_on_signal() -> Iterator[Event]:
    stop, numbers = Event(), (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="philab worker", description="Work off queued runs until stopped; start it again on exit code 75."
    )
    parser.add_argument(
        "--stalled-s",
        type=float,
        default=STALLED_S,
        metavar="S",
        help=f"take a worker silent for S seconds for dead (default: {STALLED_S:.0f})",
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
