"""Prompts of different lengths in one tensor, and the plain forward pass over them."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Padded prompts. All tensors are integers, [batch, pos]; the mask is 1 at tokens and 0 at padding."""

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor

    @classmethod
    def of(
        cls, prompts: Sequence[Sequence[int]], *, pad: int = 0, side: Literal["left", "right"] = "right", device: torch.device | str = "cpu"
    ) -> "Batch":
        """The batch of these token ids; a token's position counts its own prompt's tokens only, wherever the padding is."""
        width = max(len(prompt) for prompt in prompts)
        ids, mask = [], []
        for prompt in prompts:
            gap = width - len(prompt)
            filler, ones = [pad] * gap, [1] * len(prompt)
            ids.append([*prompt, *filler] if side == "right" else [*filler, *prompt])
            mask.append([*ones, *([0] * gap)] if side == "right" else [*([0] * gap), *ones])
        attention_mask = torch.tensor(mask, device=device)
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        return cls(input_ids=torch.tensor(ids, device=device), attention_mask=attention_mask, position_ids=positions)

    @property
    def size(self) -> int:
        """Number of prompts."""
        return self.input_ids.shape[0]

    @property
    def width(self) -> int:
        """Positions of the longest prompt."""
        return self.input_ids.shape[1]

    def repeated(self, times: int) -> "Batch":
        """The whole batch `times` times, one after the other."""
        return type(self)(
            input_ids=self.input_ids.repeat(times, 1),
            attention_mask=self.attention_mask.repeat(times, 1),
            position_ids=self.position_ids.repeat(times, 1),
        )

    def at(self, positions: Tensor) -> "Batch":
        """Some positions only; meaningful for what works on each position by itself."""
        return type(self)(
            input_ids=self.input_ids[:, positions],
            attention_mask=self.attention_mask[:, positions],
            position_ids=self.position_ids[:, positions],
        )


def forward(model: PreTrainedModel, batch: Batch, positions: Tensor | None = None, *, grad: bool = False) -> Tensor:
    """Logits [batch, kept, vocab] of a plain forward pass: no cache, and at `positions` only where the model can do that.

    Args:
        model: any causal language model.
        batch: prompts.
        positions: positions along the sequence whose logits are wanted, ascending; all when None.
        grad: keep what gradients need.
    """
    arguments: dict[str, object] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    if accepts(model, "position_ids"):
        arguments["position_ids"] = batch.position_ids
    keep = positions is not None and accepts(model, "logits_to_keep")
    if keep:
        arguments["logits_to_keep"] = positions
    with torch.set_grad_enabled(grad):
        logits = model(**arguments).logits
    return logits if keep or positions is None else logits[:, positions]


def accepts(model: PreTrainedModel, argument: str) -> bool:
    """Whether the model's forward takes an argument of that name."""
    return argument in _arguments(type(model))


@cache
def _arguments(model_class: type[PreTrainedModel]) -> frozenset[str]:
    return frozenset(inspect.signature(model_class.forward).parameters)
