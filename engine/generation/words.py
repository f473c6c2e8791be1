"""What was written so far as text, token by token, never with half a character."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

BEFORE = 5
"""Tokens of the prompt that are decoded along, so that a first token keeps the space in front of it."""
WINDOW = 12
"""Tokens that are decoded at once, at most; a decoder gives the text of a token only together with those in front of it."""
UNFINISHED = "\ufffd"
"""What decoders give for bytes that are no character, or not one yet."""


class Words:
    """The text behind one prompt while it grows.

    Attributes:
        text: what was given out so far.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> None:
        """Begins with nothing written."""
        self.text = ""
        self._tokenizer = tokenizer
        self._ids = list(prompt[-BEFORE:])
        self._before = self._decoded().rstrip(UNFINISHED)

    def add(self, token: int) -> str:
        """What another token adds; nothing while it ends in the middle of a character. Special tokens have no text."""
        self._ids.append(token)
        now = self._decoded()
        return "" if now.endswith(UNFINISHED) else self._given(now)

    def end(self) -> str:
        """What was held back; bytes that never became a character are shown as such."""
        return self._given(self._decoded())

    def _given(self, now: str) -> str:
        new, self._before = now[len(self._before) :], now
        self.text += new
        if len(self._ids) > WINDOW:
            self._ids = self._ids[-BEFORE:]
            self._before = self._decoded()
        return new

    def _decoded(self) -> str:
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
