"""The command's edge: what a person did wrong becomes one sentence and an exit code, never a traceback."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from signal import SIGINT, default_int_handler, signal
from threading import Event, current_thread, main_thread
from types import FrameType
from typing import Protocol

from engine.errors import LabError, RunCancelled

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

Main = Callable[[Sequence[str]], int | None]


class Command(Protocol):
    """A command's main function as it is called: with arguments, or with those of the process."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Runs the command and returns its exit code."""
        ...


def command(main: Main) -> Command:
    """A command's main function that returns its exit code and lets no error of ours through."""

    @wraps(main)
    def guarded(argv: Sequence[str] | None = None) -> int:
        configure_logging()
        try:
            return main(sys.argv[1:] if argv is None else argv) or 0
        except RunCancelled as cancelled:
            return _say(cancelled, INTERRUPTED)
        except LabError as wrong:
            return _say(wrong, 1)
        except KeyboardInterrupt:
            print("philab: stopped.", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
            return 0

    return guarded


def configure_logging() -> None:
    """Warnings of all libraries and news of ours to standard error; done once per process."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)


@contextmanager
def stop_on_interrupt() -> Iterator[Event]:
    """An event that the first Ctrl-C sets, so that a run can end tidily; the second one interrupts at once."""
    stop = Event()
    if current_thread() is not main_thread():
        yield stop
        return

    def ask(_number: int, _frame: FrameType | None) -> None:
        print("\nphilab: stopping after the current step; once more to stop at once.", file=sys.stderr)
        stop.set()
        signal(SIGINT, default_int_handler)

    before = signal(SIGINT, ask)
    try:
        yield stop
    finally:
        signal(SIGINT, before)


def _say(wrong: LabError, code: int) -> int:
    print(f"philab: {wrong}", file=sys.stderr)
    return code
