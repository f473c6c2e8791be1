"""Draws: reproducible numbers, and tokens drawn as often as their probability says."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest

from engine.decoding import Greedy, Sample
from engine.generation.draws import chosen, draw_keys, inverted, probabilities, uniform


def _logits(rows: int = 3, vocab: int = 12) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(3)) * 2


def test_numbers_are_uniform_and_always_the_same() -> None:
    numbers = [uniform(seed, "a", step) for seed in range(40) for step in range(50)]
    assert kstest(numbers, "uniform").pvalue > 0.01
    assert len(set(numbers)) == len(numbers)
    assert uniform(7, "a", 3) == pytest.approx(0.39160990565489195, abs=0)  # recorded once: the same on every machine


def test_a_prompt_has_its_draws_wherever_it_stands() -> None:
    first = draw_keys([[1, 2], [3], [1, 2]])
    assert draw_keys([[3], [1, 2]]) == [first[1], first[0]]
    assert len(set(first)) == 3


def test_a_number_chooses_the_token_whose_share_of_the_sum_it_falls_into() -> None:
    found = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]]).double().expand(6, 6)
    numbers = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2.0**-53]).double()
    assert inverted(found, numbers).tolist() == [1, 1, 3, 3, 4, 4]


def test_the_last_likely_token_is_chosen_however_the_sum_is_rounded() -> None:
    found = torch.cat([torch.full((1, 999), 1e-3), torch.zeros(1, 5)], 1).double()
    assert inverted(found, torch.tensor([1 - 2.0**-53]).double()).tolist() == [998]


def test_tokens_are_drawn_as_often_as_is_likely() -> None:
    logits, sampling = _logits(rows=1), Sample(temperature=0.7, seed=5)
    drawn = chosen(logits.expand(4000, -1), sampling, [str(at) for at in range(4000)], step=0)
    expected = torch.softmax(logits[0].double() / 0.7, -1).numpy() * 4000
    seen = np.bincount(drawn.numpy(), minlength=12).astype(float)
    common = expected >= 5
    observed, wanted = [*seen[common], seen[~common].sum()], [*expected[common], expected[~common].sum()]
    assert chisquare(observed, wanted).pvalue > 0.01


CHOICES = [
    Sample(),
    Sample(temperature=0.6),
    Sample(top_k=4),
    Sample(top_k=400),
    Sample(top_p=0.8),
    Sample(temperature=1.7, top_k=6, top_p=0.7),
    Sample(top_p=1e-6),
]


@pytest.mark.parametrize("sampling", CHOICES)
def test_it_draws_from_what_transformers_draws_from(sampling: Sample) -> None:
    """Against transformers' own chain of warpers."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores, ids = _logits().double(), torch.zeros(3, 1, dtype=torch.long)
    scores = TemperatureLogitsWarper(sampling.temperature)(ids, scores)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(ids, scores)
    if sampling.top_p:
        scores = TopPLogitsWarper(sampling.top_p)(ids, scores)
    found = probabilities(_logits(), sampling)
    torch.testing.assert_close(found / found.sum(-1, keepdim=True), scores.softmax(-1), atol=1e-6, rtol=0)


def test_greedy_is_the_first_of_the_largest() -> None:
    assert chosen(torch.tensor([[0.0, 2.0, 2.0]]), Greedy(), ["a"], step=0).tolist() == [1]


def test_choices_are_data() -> None:
    sampling = Sample(temperature=0.5, top_p=0.9, seed=3)
    assert Sample.model_validate_json(sampling.model_dump_json()) == sampling
    with pytest.raises(ValueError, match="greater than 0"):
        Sample(temperature=0)
