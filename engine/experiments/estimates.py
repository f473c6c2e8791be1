"""Means over prompts with their uncertainty."""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95


class Means(NamedTuple):
    """Mean, standard error and 95 % t-interval of each column; the interval is the point where there is no spread."""

    mean: np.ndarray
    se: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: int


def means(values: np.ndarray) -> Means:
    """Over the rows of [prompts, columns], in double precision: se = sd / √n with n − 1 degrees of freedom, 0 for one prompt."""
    exact = values.astype(np.float64)
    n = exact.shape[0]
    mean = exact.mean(axis=0)
    se = exact.std(axis=0, ddof=1) / math.sqrt(n) if n > 1 else np.zeros_like(mean)
    half = se * stats.t.ppf((1 + LEVEL) / 2, n - 1) if n > 1 else se
    return Means(mean, se, mean - half, mean + half, n)
