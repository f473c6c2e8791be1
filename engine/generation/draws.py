"""The next token out of logits: the likeliest, or one drawn with numbers that depend on seed, prompt and step only."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from engine.decoding import Greedy, Sample, Sampling


def draw_keys(prompts: Sequence[Sequence[int]]) -> list[str]:
    """What tells the draws of these prompts apart: their tokens, and for a prompt that is there several times which one it is."""
    seen = Counter[str]()
    keys = list[str]()
    for prompt in prompts:
        key = hashlib.sha256(",".join(map(str, prompt)).encode()).hexdigest()
        keys.append(f"{key}:{seen[key]}")
        seen[key] += 1
    return keys


def uniform(seed: int, key: str, step: int) -> float:
    """A number in [0, 1), the same on every machine."""
    digest = hashlib.sha256(f"{seed}:{key}:{step}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53


def chosen(logits: Float[Tensor, "rows vocab"], sampling: Sampling, keys: Sequence[str], *, step: int) -> Int[Tensor, " rows"]:
    """The next token of each row; `keys` are the rows' `draw_keys`."""
    if isinstance(sampling, Greedy):
        return logits.argmax(-1)
    numbers = torch.tensor([uniform(sampling.seed, key, step) for key in keys], dtype=torch.float64)
    return inverted(probabilities(logits, sampling), numbers).to(logits.device)


def probabilities(logits: Float[Tensor, "rows vocab"], sampling: Sample) -> Float[Tensor, "rows vocab"]:
    """What is drawn from, in double precision: temperature first, then the likeliest `top_k`, then of these the likeliest `top_p`."""
    exact = logits.cpu() if logits.device.type == "mps" else logits  # it has no double precision
    scores = exact.double() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    found = scores.softmax(-1)
    return found if sampling.top_p is None else found * _likeliest(found, sampling.top_p)


def _likeliest(found: Float[Tensor, "rows vocab"], share: float) -> Bool[Tensor, "rows vocab"]:
    """The fewest tokens that reach this share of the probability together; at least one."""
    ordered, order = found.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(found, dtype=torch.bool).scatter(-1, order, before < share)


def inverted(found: Float[Tensor, "rows vocab"], numbers: Float[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """The token of each row at which the probabilities, added up in the order of the ids, pass a number in [0, 1) of their sum."""
    added = found.cumsum(-1)
    total = added[:, -1:]
    wanted = numbers.to(added.device)[:, None] * total
    below = torch.minimum(wanted, torch.nextafter(total, torch.zeros_like(total)))  # rounding must not reach the sum itself
    return torch.searchsorted(added, below, right=True)[:, 0].clamp(max=added.shape[-1] - 1)  # beyond it only where there are no numbers
