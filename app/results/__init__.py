"""One view per kind of result."""

from collections.abc import Callable

from app.results.ablation import draw_ablation
from app.results.custom import draw_custom
from app.results.selftest import draw_selftest
from engine.custom import Answer, Asked

VIEWS: dict[str, Callable[..., None]] = {"ablation": draw_ablation, "selftest": draw_selftest, "custom": draw_custom}
"""Kind -> what draws its result, given the spec (of somebody's own code: the call) and the result."""


def draw_result(spec: Asked, result: Answer) -> None:
    """Draws a result with the view of its kind."""
    VIEWS[spec.kind](spec, result)
