"""What all tables on the pages have in common."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

ROW_PX = 33


def table_height(rows: int, at_most_px: int) -> int | Literal["content"]:
    """As high as its rows, or so many pixels and scrolling."""
    return "content" if (rows + 1) * ROW_PX <= at_most_px else at_most_px


def headings(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The keys of the rows as column headings, each beginning with a capital."""
    return {name: name[:1].upper() + name[1:] for name in (rows[0] if rows else ())}
