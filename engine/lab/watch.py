"""Which edits a person has put in place on a model, and which were there while an experiment ran."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import nn

from engine.custom import Source
from engine.hooks.edit import Edit
from engine.models.loading import LoadedModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mark:
    """Edits of one `with model.edit(...)` block: data, or a function's text."""

    edits: tuple[Edit, ...] = ()
    sources: tuple[Source, ...] = ()


@dataclass(slots=True)
class Watch:
    """The edits of one model. Whoever uses it holds the model's lock.

    Attributes:
        now: blocks that are open, outermost first.
        heard: for each experiment that runs, texts of the functions that were in place at any time since it began.
    """

    now: list[Mark] = field(default_factory=list[Mark])
    heard: list[list[Source]] = field(default_factory=list[list[Source]])

    @contextmanager
    def marked(self, mark: Mark) -> Iterator[None]:
        """Inside the block these edits count as in place."""
        self.now.append(mark)
        for listener in self.heard:
            listener += mark.sources
        try:
            yield
        finally:
            self.now.remove(mark)

    @contextmanager
    def listening(self) -> Iterator[list[Source]]:
        """Texts of functions that are in place now, or come to be before the block ends."""
        listener = [source for mark in self.now for source in mark.sources]
        self.heard.append(listener)
        try:
            yield listener
        finally:
            self.heard = [other for other in self.heard if other is not listener]


def watch_of(loaded: LoadedModel) -> Watch:
    """The watch of a model in memory, the same for all who hold that model."""
    return _watches.setdefault(loaded.model, Watch())


_watches: "WeakKeyDictionary[nn.Module, Watch]" = WeakKeyDictionary()
