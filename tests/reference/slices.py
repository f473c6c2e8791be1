"""Which numbers the reference files keep, said once for those who write them and those who compare."""

import hashlib

from torch import Tensor, nn

PROMPTS = [[5, 9, 2, 7, 11, 3, 8, 4], [6, 1, 13, 30], [2, 2, 40, 41, 7]]
HEADS = ((0, 1), (1, 3), (2, 0))
"""Layer and head of the ablations."""
POSITIONS = (0, 1, 3, -1)
COLUMNS = tuple(range(0, 340, 48))
"""Of the logits; the vocabulary has 340."""
LAYER = 1
"""Layer of the activations; prompt 0."""
WITH_HEADS = ("z", "q", "k", "v")
"""Sites that TransformerLens gives as [pos, head, d_head]."""
PAIRS = ("scores", "pattern")
"""Sites that it gives as [head, query, key]."""


def of_logits(logits: Tensor) -> Tensor:
    """The numbers kept of one prompt's logits, [pos, vocab]."""
    return logits[list(POSITIONS)][:, list(COLUMNS)]


def of_site(site: str, x: Tensor) -> Tensor:
    """The same of an activation; of the second head where there are heads."""
    if site in PAIRS:
        return x[1, [0, 3, 7]]
    if site in WITH_HEADS:
        x = x[:, 1]
    return x[[0, 3, 7], :6]


def weights_hash(model: nn.Module) -> str:
    """sha256 of all parameters, to the bit."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
