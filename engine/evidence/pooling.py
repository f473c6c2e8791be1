"""The statistics of a finding, one column per site. The unit is the shard: replicas verify, shards generalise.

Source: Hartung and Knapp (2001) for the interval, which for equal shards is the t interval of their mean; Paule and Mandel (1982)
for tau; Higgins and Thompson (2002) for I²; Benjamini and Hochberg (1995) for q.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats as untyped_stats  # pyright: ignore[reportMissingTypeStubs]

stats: Any = untyped_stats

Column = NDArray[np.float64]

LEVEL = 0.95
_BISECTIONS = 100
_EXTREME = 1e12  # ratio of sampling error to spread beyond which it is taken for none, or for all there is


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """Statistics over shards, every attribute one number per site, in the metric's unit where it has one.

    Attributes:
        estimate: mean over shards.
        se: standard error of that mean, from the spread between shards.
        ci_low: lower end of the 95 % interval for the mean over all shards like these.
        ci_high: upper end.
        next_low: lower end of the 95 % interval for the next shard of the same size.
        next_high: upper end.
        tau: standard deviation between shards beyond their sampling error.
        i2: share of the spread between shards that sampling error does not explain, 0 to 1.
        p: probability of a mean this far from 0 if the true |effect| were `delta`.
        q: p after Benjamini-Hochberg over all sites.
        confidence: probability that the next shard has the same sign and at least `delta`.
        sign_agreement: share of shards with the sign of the estimate.
        sign_low: lower end of its 95 % Clopper-Pearson interval.
        sign_high: upper end.
        median: median over shards.
    """

    estimate: Column
    se: Column
    ci_low: Column
    ci_high: Column
    next_low: Column
    next_high: Column
    tau: Column
    i2: Column
    p: Column
    q: Column
    confidence: Column
    sign_agreement: Column
    sign_low: Column
    sign_high: Column
    median: Column


def pool_columns(effects: Column, se: Column, *, delta: float) -> Pooled:
    """The statistics of every site.

    Where all shards say exactly the same, the intervals are that point, p is 0 or 1, and the confidence is 1 or 0: never NaN.

    Args:
        effects: `shard site`, one validated effect per shard; at least two shards.
        se: `shard site`, their standard errors over prompts.
        delta: smallest effect of interest, 0 or more.
    """
    k = len(effects)
    estimate, spread = _mean_and_spread(effects)
    standard_error = spread / np.sqrt(k)
    half, next_half = (_quantile(k) * scale for scale in (standard_error, spread * np.sqrt(1 + 1 / k)))
    p = _p_value(estimate, standard_error, delta=delta, k=k)
    tau, i2 = heterogeneity(effects, se)
    agreeing = np.sum(np.sign(effects) == np.sign(estimate), axis=0)
    sign_low, sign_high = _clopper_pearson(agreeing, k)
    return Pooled(
        estimate=estimate,
        se=standard_error,
        ci_low=estimate - half,
        ci_high=estimate + half,
        next_low=estimate - next_half,
        next_high=estimate + next_half,
        tau=tau,
        i2=i2,
        p=p,
        q=np.asarray(stats.false_discovery_control(p, method="bh")),
        confidence=_confidence(estimate, spread * np.sqrt(1 + 1 / k), delta=delta, k=k),
        sign_agreement=agreeing / k,
        sign_low=sign_low,
        sign_high=sign_high,
        median=np.median(effects, axis=0),
    )


def heterogeneity(effects: Column, se: Column) -> tuple[Column, Column]:
    """Tau (Paule-Mandel, in the metric's unit) and I² (from Cochran's Q, 0 to 1) per site."""
    k = len(effects)
    mean, spread = _mean_and_spread(effects)
    scale = np.where(spread > 0, spread, 1.0)  # in units of the spread no square can overflow
    with np.errstate(over="ignore"):
        relative = np.clip(se / scale, 1 / _EXTREME, _EXTREME)
    distance, variance = (effects - mean) / scale, relative**2
    known = (np.max(se, axis=0) > 0) & (spread > 0)
    q = np.maximum(_weighted_squares(distance, variance), k - 1)
    i2 = np.where(known, 1 - (k - 1) / q, 1.0 * (spread > 0))
    tau = np.where(known, spread * np.sqrt(_paule_mandel(distance, variance)), spread)
    return tau, i2


def outliers(effects: Column) -> NDArray[np.bool_]:
    """Which shards lie more than 3.5 scaled MADs from the median, `shard site`. They are shown, never dropped."""
    distance = np.abs(effects - np.median(effects, axis=0))
    mad = np.asarray(stats.median_abs_deviation(effects, axis=0, scale="normal"))
    return (distance > 3.5 * mad) & (mad > 0)


def _mean_and_spread(effects: Column) -> tuple[Column, Column]:
    """Mean and standard deviation over shards; exactly the point and 0 where all shards are equal."""
    same = np.max(effects, axis=0) == np.min(effects, axis=0)
    mean: Column = np.mean(effects, axis=0)
    return np.where(same, effects[0], mean), np.where(same, 0.0, np.std(effects, axis=0, ddof=1))


def _quantile(k: int) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, k - 1))


def _ratio(distance: Column, scale: Column) -> Column:
    """`distance / scale`; ±infinity where the scale is 0, and −infinity for 0 / 0: a bound that is just met is not exceeded."""
    certain = scale == 0
    with np.errstate(over="ignore"):
        ratio = distance / np.where(certain, 1.0, scale)
    return np.where(certain, np.where(distance > 0, np.inf, -np.inf), ratio)


def _p_value(estimate: Column, standard_error: Column, *, delta: float, k: int) -> Column:
    """One-sided against |effect| ≤ delta, plus the far tail, without which the test would be too lenient where delta is small.

    A true effect of +delta can also produce a mean beyond −|estimate|. With delta = 0 the sum is the ordinary two-sided p;
    with a delta of a few standard errors the far tail vanishes.
    """
    size = np.abs(estimate)
    near = stats.t.sf(_ratio(size - delta, standard_error), k - 1)
    far = np.where(standard_error == 0, 0.0, stats.t.sf(_ratio(size + delta, standard_error), k - 1))
    return np.minimum(1.0, near + far)


def _confidence(estimate: Column, scale: Column, *, delta: float, k: int) -> Column:
    return np.asarray(stats.t.cdf(_ratio(np.abs(estimate) - delta, scale), k - 1))


def _weighted_squares(effects: Column, variance: Column) -> Column:
    """Cochran's Q: weighted squares of the distances from the weighted mean."""
    weights = 1 / variance
    mean = np.sum(weights * effects, axis=0) / np.sum(weights, axis=0)
    return np.sum(weights * (effects - mean) ** 2, axis=0)


def _paule_mandel(effects: Column, variance: Column) -> Column:
    """The tau² at which Q equals its expectation k − 1, 0 where Q is below it already.

    It lies between 0 and the plain variance of the effects, which is 1 here: they come in units of their spread.
    """
    target = len(effects) - 1
    low, high = np.zeros(effects.shape[1]), np.ones(effects.shape[1])
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        above = _weighted_squares(effects, variance + middle) > target
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(_weighted_squares(effects, variance) <= target, 0.0, (low + high) / 2)


def _clopper_pearson(agreeing: NDArray[Any], k: int) -> tuple[Column, Column]:
    table = _clopper_pearson_table(k)
    return table[agreeing, 0], table[agreeing, 1]


@cache
def _clopper_pearson_table(k: int) -> Column:
    """The intervals for 0 to k successes out of k."""
    return np.array([stats.binomtest(count, k).proportion_ci(LEVEL, method="exact") for count in range(k + 1)])
