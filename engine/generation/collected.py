"""Whole texts out of the steps of a generation."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from engine.decoding import StopReason
from engine.generation.stream import Step, Token, generate
from engine.hooks.sites import PAIRS, Site
from engine.models.loading import LoadedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written behind one prompt under one variant.

    Attributes:
        prompt: index of the prompt.
        variant: index of the variant.
        ids: the new token ids, with the one that ended the text.
        text: the new tokens as text, without special tokens.
        logprobs: natural logarithm of the probability that the edited model gave each, before temperature, `top_k` and `top_p`.
        margins: difference of the two largest logits at each.
        stop: why it ended.
        captures: site -> tensor whose axis of tokens is the prompt's followed by the new ones', on the CPU. The last new token was
            written but never read, so it has no activations. Scores and pattern are [..., query, key]; of keys that a layer with a
            sliding window had forgotten the pattern is 0 and the scores are the lowest number there is.
    """

    prompt: int
    variant: int
    ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    margins: tuple[float, ...]
    stop: StopReason
    captures: Mapping[Site, Tensor] = field(default_factory=dict[Site, Tensor])


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """What was written.

    Attributes:
        written: all prompts under the first variant, then all under the second, and so on.
        n_prompts: number of prompts.
    """

    written: tuple[Written, ...]
    n_prompts: int

    def of(self, prompt: int, variant: int = 0) -> Written:
        """What was written behind a prompt under a variant."""
        return self.written[variant * self.n_prompts + prompt]


def complete(loaded: LoadedModel, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, **how: Any) -> Generated:
    """All that `engine.generation.stream.generate` writes; it takes the same arguments and raises the same errors."""
    prompts = [list(prompt) for prompt in prompts]
    steps = generate(loaded, prompts, max_new_tokens=max_new_tokens, **how)
    return collected(steps, prompts, n_variants=len(how.get("variants") or ((),)))


def collected(steps: Iterable[Step], prompts: Sequence[Sequence[int]], *, n_variants: int = 1) -> Generated:
    """The texts that these steps make; a text that had not ended when they did counts as cancelled."""
    growing = [_Growing(prompt) for _ in range(n_variants) for prompt in prompts]
    for step in steps:
        for at, token in enumerate(step.tokens):
            growing[token.variant * len(prompts) + token.prompt].add(token, {site: x[at] for site, x in step.captures.items()})
    written = (each.written(row % len(prompts), row // len(prompts)) for row, each in enumerate(growing))
    return Generated(written=tuple(written), n_prompts=len(prompts))


class _Growing:
    """A text, and what was captured along with it."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._prompt_length = len(prompt)
        self._tokens = list[Token]()
        self._captures = dict[Site, list[Tensor]]()

    def add(self, token: Token, captures: Mapping[Site, Tensor]) -> None:
        """Another token; the captures are those of the step that wrote it, with the row's padding."""
        new = self._prompt_length if not self._tokens else 1
        for site, x in captures.items():
            part = x[..., -new:, :] if site.name in PAIRS else x[-new:]
            self._captures.setdefault(site, []).append(part.cpu().clone())
        self._tokens.append(token)

    def written(self, prompt: int, variant: int) -> Written:
        """All of it."""
        return Written(
            prompt=prompt,
            variant=variant,
            ids=tuple(token.id for token in self._tokens),
            text="".join(token.text for token in self._tokens),
            logprobs=tuple(token.logprob for token in self._tokens),
            margins=tuple(token.margin for token in self._tokens),
            stop=(self._tokens[-1].stop if self._tokens else None) or "cancelled",
            captures={site: self._joined(site, parts) for site, parts in self._captures.items()},
        )

    def _joined(self, site: Site, parts: Sequence[Tensor]) -> Tensor:
        if site.name not in PAIRS:
            return torch.cat(list(parts))
        lengths = [self._prompt_length + step for step in range(len(parts))]
        lowest = 0.0 if site.name == "pattern" else torch.finfo(parts[0].dtype).min
        squares = (_with_keys(x, known, lengths[-1], lowest) for x, known in zip(parts, lengths, strict=True))
        return torch.cat(list(squares), dim=-2)


def _with_keys(x: Tensor, known: int, keys: int, lowest: float) -> Tensor:
    """Queries whose last key is token `known` - 1, given as many keys as all of them have."""
    there = min(known, x.shape[-1])
    out = x.new_full((*x.shape[:-1], keys), lowest)
    out[..., known - there : known] = x[..., x.shape[-1] - there :]
    return out
