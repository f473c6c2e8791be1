"""The text of a person's own function, to be kept with the run that used it."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from engine.custom import MAX_SOURCE, Source

_NOTEBOOK = ("ipykernel_", "<ipython-input-", "ipython-input")
"""Parts of the file names that notebooks give to their cells."""


def source_of(function: Callable[..., Any], role: Literal["experiment", "edit"], *, at: str | None = None) -> Source:
    """Name and text of a function, or of the class of an object that is called like one.

    The text is that of the function alone: names that it takes from around it, and values closed over, are not in it. A function
    typed at a plain Python prompt has no text that could be found; its origin is 'unknown' then.
    """
    function = function.func if isinstance(function, partial) else function
    thing = function if inspect.isroutine(function) else type(function)
    try:
        text, file = inspect.getsource(thing), inspect.getfile(thing)
    except (OSError, TypeError, IndexError):
        text, file = "", ""
    origin = "unknown" if not text else "notebook" if any(mark in file for mark in _NOTEBOOK) else "file"
    name = str(getattr(thing, "__qualname__", thing)).replace("<locals>.", "").rpartition(".")[2]
    return Source(name=name[:200] or "function", role=role, at=at, origin=origin, text=text[:MAX_SOURCE])
