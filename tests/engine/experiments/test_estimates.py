import numpy as np
import pytest
from scipy import stats

from engine.experiments.estimates import means


def test_mean_error_and_interval_are_those_of_the_t_test() -> None:
    values = np.random.default_rng(0).normal(2.0, 3.0, size=(12, 4))
    got = means(values)
    for column in range(4):
        sample = values[:, column]
        interval = stats.ttest_1samp(sample, 0).confidence_interval(0.95)
        expected = (sample.mean(), stats.sem(sample), interval.low, interval.high)
        assert (got.mean[column], got.se[column], got.low[column], got.high[column]) == pytest.approx(expected)


@pytest.mark.parametrize("values", [np.array([[1.5]]), np.full((5, 1), 1.5)])
def test_without_spread_the_interval_is_the_point(values: np.ndarray) -> None:
    got = means(values)
    assert (got.mean[0], got.se[0], got.low[0], got.high[0]) == (1.5, 0, 1.5, 1.5)
