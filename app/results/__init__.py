"""One view per kind of result."""

from collections.abc import Callable

from app.results.ablation import draw_ablation
from engine.result import Result
from engine.spec import AnySpec

VIEWS: dict[str, Callable[[AnySpec, Result], None]] = {"ablation": draw_ablation}
"""Spec kind -> what draws its result."""


def draw_result(spec: AnySpec, result: Result) -> None:
    """Draws a result with the view of its kind."""
    VIEWS[spec.kind](spec, result)
