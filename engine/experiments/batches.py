"""Prompts in batches, which become smaller when memory runs out."""

from collections.abc import Callable, Sequence

from engine.errors import ModelError
from engine.experiments.prompts import Prompt
from engine.hooks.shortage import give_memory_back, ran_out_of_memory


class Batches:
    """Cuts prompts into batches.

    Attributes:
        size: prompts per batch from now on.
        cut: whether that is fewer than was asked for, because memory ran out.
    """

    def __init__(self, size: int, *, device: str, on_cut: Callable[[str], None]) -> None:
        """Begins with batches of `size`; `on_cut` is told when they become smaller."""
        self.size = size
        self.cut = False
        self._device = device
        self._on_cut = on_cut

    @property
    def size_text(self) -> str:
        """The size in words."""
        return "1 prompt" if self.size == 1 else f"{self.size} prompts"

    def go_through(self, prompts: Sequence[Prompt], work: Callable[[slice], None]) -> None:
        """Calls `work` with one slice of the prompts after another; again with a smaller one where memory ran out.

        Raises:
            ModelError: memory ran out for a single prompt.
        """
        start = 0
        while start < len(prompts):
            some = slice(start, min(start + self.size, len(prompts)))
            if self._done(prompts[some], lambda some=some: work(some)):
                start = some.stop
            else:
                give_memory_back()

    def _done(self, prompts: Sequence[Prompt], work: Callable[[], None]) -> bool:
        """Whether the work was done; if not, the next batch is smaller."""
        try:
            work()
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            if len(prompts) == 1:
                raise self._too_long(prompts[0]) from error
            self._halve(len(prompts))
            return False
        return True

    def _halve(self, size: int) -> None:
        self.size, self.cut = size // 2, True
        self._on_cut(f"memory ran out: batches are cut to {self.size_text}")

    def _too_long(self, prompt: Prompt) -> ModelError:
        return ModelError(
            f"memory ran out on {self._device} with a single prompt, '{prompt.id}' of {len(prompt.tokens)} tokens.",
            next_step="Free memory, choose shorter prompts, dtype bfloat16, or a device with more memory.",
        )
