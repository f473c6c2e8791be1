"""A tensor in the forward pass, by the module that it meets."""

from typing import Literal, NamedTuple

from torch import nn

Side = Literal["in", "out", "heads", "logits", "q", "k", "v", "scores", "pattern"]
"""What goes into a module, what comes out of it, or one on the way: what each head adds, the logits in a model's output, or a tensor
within attention."""


class Place(NamedTuple):
    """A tensor in the forward pass."""

    module: nn.Module
    side: Side
