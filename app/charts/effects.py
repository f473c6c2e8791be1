"""The rows that effect charts are drawn from."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectRow:
    """One site's effect with its 95 % interval, in the metric's unit.

    Attributes:
        head: query head, None where the site is a whole layer's output.
        next_low: lower end of the interval for the next shard, where there is one.
        next_high: upper end of it.
        detail: further columns of the tooltip, title to text.
    """

    label: str
    layer: int
    head: int | None
    estimate: float
    low: float
    high: float
    next_low: float | None = None
    next_high: float | None = None
    detail: tuple[tuple[str, str], ...] = ()

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def chart_values(rows: Iterable[EffectRow]) -> list[dict[str, Any]]:
    """The rows as the inline data of a chart."""
    return [
        {
            "site": row.label,
            "layer": row.layer,
            "head": "output" if row.head is None else row.head,
            "estimate": row.estimate,
            "low": row.low,
            "high": row.high,
            "next_low": row.next_low,
            "next_high": row.next_high,
            "excludes_zero": row.excludes_zero,
            **dict(row.detail),
        }
        for row in rows
    ]


def detail_titles(rows: Sequence[EffectRow]) -> list[str]:
    """Titles of the further tooltip columns, in the order in which they are met."""
    return list(dict.fromkeys(title for row in rows for title, _ in row.detail))


def largest(rows: Iterable[EffectRow]) -> float:
    """The largest |effect|; 1 where all are 0, so that a scale always has a width."""
    return max((abs(row.estimate) for row in rows), default=0.0) or 1.0


def number_format(scale: float) -> str:
    """D3 format with a sign and three significant places for numbers of that size."""
    if scale >= 1e4 or scale < 1e-3:
        return "+.2e"
    return f"+.{max(0, min(5, 2 - math.floor(math.log10(scale)) + 1))}f"
