"""Texts that a model wrote on behind prompts, as a value that shows itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.errors import SpecError
from engine.generation import Written, complete
from engine.lab.display import html_table, text_table
from engine.lab.watch import watch_of
from engine.models.loading import LoadedModel

if TYPE_CHECKING:
    import pandas

COLUMNS = ("prompt", "variant", "text", "tokens", "logprob", "stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """What was written.

    Attributes:
        prompts: the prompts as text.
        written: all prompts under the first variant, then all under the second, and so on; with token ids, log-probabilities, margins
            and captures.
    """

    prompts: tuple[str, ...]
    written: tuple[Written, ...]

    @property
    def texts(self) -> list[str]:
        """The new texts, in the order of `written`."""
        return [each.text for each in self.written]

    def of(self, prompt: int, variant: int = 0) -> Written:
        """What was written behind a prompt under a variant."""
        return self.written[variant * len(self.prompts) + prompt]

    def to_pandas(self) -> "pandas.DataFrame":
        """One row per text; `logprob` is that of all its tokens together, in nats."""
        import pandas

        return pandas.DataFrame(self._rows(), columns=list(COLUMNS))

    def _rows(self) -> list[tuple[Any, ...]]:
        return [(self.prompts[one.prompt], one.variant, one.text, len(one.ids), float(sum(one.logprobs)), one.stop) for one in self.written]

    def __repr__(self) -> str:
        """One line per text."""
        return text_table("Written", COLUMNS, [[repr(cell) if isinstance(cell, str) else cell for cell in row] for row in self._rows()])

    def _repr_html_(self) -> str:
        return html_table("Written", COLUMNS, self._rows())


def write(loaded: LoadedModel, prompts: Sequence[Sequence[int]], shown: Sequence[str], **how: Any) -> Writing:
    """What the model writes behind the prompts; `how` as `engine.generation.generate` takes it.

    Raises:
        SpecError: an edit is in place that cannot know where the prompts end, because everything is read again for each token.
    """
    with loaded.lock:
        if watch_of(loaded).now and not how.get("use_cache", True):
            raise SpecError(
                "without a cache, an edit that is in place cannot tell the prompt from what was written.",
                next_step="Give the edits to generate itself, as edits=, or leave use_cache=False out.",
            )
        return Writing(prompts=tuple(shown), written=complete(loaded, prompts, **how).written)
