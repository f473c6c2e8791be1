"""What a corpus family makes: one short document, with the place where the answer begins if it asks something."""

from dataclasses import dataclass
from random import Random

Rng = Random
"""Source of chance. Its stream for a text seed is the same on every platform and Python version that we support."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A document. Where it asks something, `target` is the right continuation and `distractor` a wrong one; both begin with a space."""

    family: str
    prompt: str
    target: str = ""
    distractor: str = ""
    label: str = ""
    tail: str = ""
    content: str = ""

    @property
    def text(self) -> str:
        """The whole document, as the model is trained on it."""
        return self.prompt + self.target + self.tail


def sentence(text: str) -> str:
    """The text with a capital letter at its start."""
    return text[:1].upper() + text[1:]
