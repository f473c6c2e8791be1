"""Metrics: one number per prompt, read off the logits at exactly the positions that it needs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from engine.errors import ModelError
from engine.experiments.prompts import Prompt
from engine.hooks.replay import Readout
from engine.spec.ablation import Metric

NOT_SCORED = -100
LOGITS_AT_ONCE = 2**24
"""Logits whose log-softmax is held at once."""


def readout_for(metric: Metric, prompts: Sequence[Prompt], device: torch.device) -> Readout:
    """The metric of a batch of right-padded prompts."""
    if metric in ("loss", "target_loss"):
        return _Nll.of(prompts, device)
    return _Choice.of(prompts, device, share=metric == "accuracy")


@dataclass(frozen=True, slots=True)
class _Nll:
    """Mean negative log-likelihood, in nats, of the scored tokens of each prompt."""

    positions: Tensor | None
    targets: Tensor  # [batch, kept]

    @classmethod
    def of(cls, prompts: Sequence[Prompt], device: torch.device) -> "_Nll":
        width = max(len(prompt.tokens) for prompt in prompts)
        targets = torch.full((len(prompts), width), NOT_SCORED)
        for row, prompt in enumerate(prompts):
            scored = prompt.tokens[prompt.scored_from :]
            targets[row, prompt.scored_from - 1 : len(prompt.tokens) - 1] = torch.tensor(scored)
        kept = (targets != NOT_SCORED).any(0).nonzero().squeeze(-1)
        everything = len(kept) >= width - 1
        return cls(None if everything else kept.to(device), (targets if everything else targets[:, kept]).to(device))

    def __call__(self, logits: Tensor) -> Tensor:
        targets = self.targets.repeat(logits.shape[0] // self.targets.shape[0], 1)
        rows = max(1, LOGITS_AT_ONCE // logits[0].numel())
        parts = zip(logits.split(rows), targets.split(rows), strict=True)
        return _finite(torch.cat([_mean_nll(some, wanted) for some, wanted in parts]))


def _mean_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """[rows] from logits [rows, kept, vocab] and the tokens to be predicted [rows, kept]."""
    each = functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none", ignore_index=NOT_SCORED)
    return each.view(targets.shape).sum(-1) / (targets != NOT_SCORED).sum(-1)


@dataclass(frozen=True, slots=True)
class _Choice:
    """Logit of the target minus that of the distractor behind the last prompt token, or whether that is above zero."""

    positions: Tensor
    rows: Tensor  # [batch] index of each prompt's last token among the positions
    target: Tensor  # [batch]
    distractor: Tensor  # [batch]
    share: bool

    @classmethod
    def of(cls, prompts: Sequence[Prompt], device: torch.device, *, share: bool) -> "_Choice":
        last = torch.tensor([len(prompt.tokens) - 1 for prompt in prompts])
        positions, rows = last.unique(sorted=True, return_inverse=True)
        target = torch.tensor([prompt.target for prompt in prompts])
        distractor = torch.tensor([prompt.distractor for prompt in prompts])
        return cls(positions.to(device), rows.to(device), target.to(device), distractor.to(device), share)

    def __call__(self, logits: Tensor) -> Tensor:
        times = logits.shape[0] // len(self.rows)
        at_last = logits[torch.arange(logits.shape[0], device=logits.device), self.rows.repeat(times)].float()
        target, distractor = (at_last.gather(1, ids.repeat(times)[:, None]).squeeze(1) for ids in (self.target, self.distractor))
        difference = _finite(target - distractor)
        return (difference > 0).float() if self.share else difference


def _finite(values: Tensor) -> Tensor:
    if not torch.isfinite(values).all():
        raise ModelError("the model's output is not finite.", next_step="Choose dtype float32, or check the weights.")
    return values
