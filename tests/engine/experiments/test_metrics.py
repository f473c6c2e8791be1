"""Metrics against the plain formula, prompt by prompt and without padding."""

import math

import pytest
import torch

from engine.errors import ModelError
from engine.experiments.metrics import readout_for
from engine.experiments.prompts import Prompt
from engine.hooks.batch import Batch, forward
from engine.models.loading import LoadedModel
from engine.spec.ablation import Metric

PROMPTS = [
    Prompt(id="a", tokens=(5, 9, 2, 7, 11, 3, 8, 4), scored_from=6, target=30, distractor=12),
    Prompt(id="b", tokens=(6, 1, 13), scored_from=1, target=7, distractor=200),
    Prompt(id="c", tokens=(2, 2, 40, 41, 7), scored_from=3, target=3, distractor=4),
]
CPU = torch.device("cpu")


def _by_formula(loaded: LoadedModel, prompt: Prompt, metric: Metric) -> float:
    logits = loaded.model(torch.tensor([prompt.tokens])).logits[0].double()
    difference = (logits[-1, prompt.target] - logits[-1, prompt.distractor]).item()
    if metric == "logit_diff":
        return difference
    if metric == "accuracy":
        return 1.0 if difference > 0 else 0.0
    scored = range(prompt.scored_from, len(prompt.tokens))
    log_p = [logits[at - 1, prompt.tokens[at]] - logits[at - 1].exp().sum().log() for at in scored]
    return -sum(log_p).item() / len(log_p)


@pytest.mark.parametrize("metric", ["loss", "target_loss", "logit_diff", "accuracy"])
def test_a_metric_is_its_formula(llama: LoadedModel, metric: Metric) -> None:
    readout = readout_for(metric, PROMPTS, CPU)
    batch = Batch.of([prompt.tokens for prompt in PROMPTS]).repeated(2)
    values = readout(forward(llama.model, batch, readout.positions)).tolist()
    expected = [_by_formula(llama, prompt, metric) for prompt in PROMPTS]
    assert values == pytest.approx(expected * 2, abs=1e-5)


def test_only_the_positions_that_are_read_are_asked_for() -> None:
    positions = readout_for("logit_diff", PROMPTS, CPU).positions
    assert positions is not None
    assert positions.tolist() == [2, 4, 7]
    scored = readout_for("target_loss", PROMPTS[:1], CPU).positions
    assert scored is not None
    assert scored.tolist() == [5, 6]


def test_a_tie_is_no_hit() -> None:
    readout = readout_for("accuracy", PROMPTS[:1], CPU)
    assert readout(torch.zeros(1, 1, 300)).tolist() == [0.0]


@pytest.mark.parametrize("metric", ["loss", "logit_diff"])
def test_output_that_is_not_finite_is_an_error(metric: Metric) -> None:
    readout = readout_for(metric, PROMPTS[:1], CPU)
    with pytest.raises(ModelError, match="not finite"):
        readout(torch.full((1, 2 if metric == "loss" else 1, 300), math.nan))
