"""Text that is fed in token by token, with the keys and values of the tokens before kept in a cache, against the whole text at once."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engine.experiments.checks.subject import NEW_TOKENS, Measured, NotApplicable, Subject, apart, largest, plain
from engine.hooks.batch import accepts

CLEAR = 1e-3
"""Two best logits that are closer than this may change places by rounding alone."""


class _State(NamedTuple):
    """What a decoder carries from step to step: the cache, and the mask of all tokens so far."""

    cache: Any
    mask: Int[Tensor, "batch pos"]


def cached(subject: Subject) -> Measured:
    """Each prompt alone: its first half at once, the rest token by token."""
    found: list[tuple[float, str]] = []
    for number, (prompt, alone) in enumerate(zip(subject.prompts, subject.alone, strict=True)):
        ids = torch.tensor([prompt], device=subject.loaded.device)
        start = max(1, len(prompt) // 2)
        logits, state = _step(subject, ids[:, :start], _State(None, torch.ones_like(ids[:, :start])))
        parts = [logits[0]]
        for at in range(start, len(prompt)):
            logits, state = _step(subject, ids[:, at : at + 1], state)
            parts.append(logits[0])
        found.append((apart(torch.cat(parts), alone), f"in prompt {number}"))
    return largest(found, subject.tolerance)


def greedy(subject: Subject) -> Measured:
    """Some tokens behind all prompts in one left-padded batch with a cache, against each prompt alone without one."""
    right = [_continued(subject, prompt) for prompt in subject.prompts]
    batch = subject.batch(side="left")
    logits, state = _step(subject, batch.input_ids, _State(None, batch.attention_mask))
    wrong, unclear = 0, 0
    for step in range(NEW_TOKENS):
        for row, rows in enumerate(right):
            clear = _margin(rows[step]) > max(CLEAR, 2 * subject.tolerance * float(rows[step].abs().max()))
            unclear += not clear
            wrong += clear and int(logits[row, -1].argmax()) != int(rows[step].argmax())
        chosen = torch.stack([rows[step].argmax() for rows in right])[:, None]
        logits, state = _step(subject, chosen, state)
    total = NEW_TOKENS * len(right)
    return Measured(wrong, 0, "tokens", f"{total - unclear} compared, {unclear} left out because the two best are too close")


def _continued(subject: Subject, prompt: tuple[int, ...]) -> list[Float[Tensor, " vocab"]]:
    """Logits behind the prompt, and behind each greedily chosen token, every time by a whole plain call."""
    tokens, found = list(prompt), list[Tensor]()
    for _ in range(NEW_TOKENS):
        subject.pause()
        found.append(plain(subject.model, tokens)[-1])
        tokens.append(int(found[-1].argmax()))
    return found


def _margin(logits: Float[Tensor, " vocab"]) -> float:
    best = logits.float().topk(2).values
    return float(best[0] - best[1])


def _step(subject: Subject, ids: Int[Tensor, "batch new"], state: _State) -> tuple[Float[Tensor, "batch new vocab"], _State]:
    """Logits of some more tokens, and what the next step needs.

    Raises:
        NotApplicable: the model keeps no cache.
    """
    subject.pause()
    mask = state.mask if state.cache is None else torch.cat([state.mask, torch.ones_like(ids)], dim=1)
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "past_key_values": state.cache, "use_cache": True}
    if accepts(subject.model, "position_ids"):
        given["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    with torch.no_grad():
        output = subject.model(**given)
    cache = getattr(output, "past_key_values", None)
    if cache is None:
        raise NotApplicable(f"{type(subject.model).__name__} keeps no keys and values.")
    return output.logits, _State(cache, mask)
