"""Tables in notebooks and at the prompt. Whatever is shown was written by somebody, so all of it is escaped."""

from collections.abc import Sequence
from html import escape
from typing import Any


def html_table(heading: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], notes: Sequence[str] = ()) -> str:
    """A heading, a small table, and notes under it, as HTML."""
    head = "".join(f"<th>{_cell(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    under = "".join(f"<p><small>{_cell(note)}</small></p>" for note in notes)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if columns else ""
    return f"<div><p><strong>{_cell(heading)}</strong></p>{table}{under}</div>"


def text_table(heading: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], notes: Sequence[str] = ()) -> str:
    """The same as plain text."""
    cells = [list(columns), *([shown(value) for value in row] for row in rows)] if columns else []
    widths = [max(len(row[at]) for row in cells) for at in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([heading, *lines, *notes])


def shown(value: Any) -> str:
    """A value as people read it."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(value: Any) -> str:
    return escape(shown(value), quote=True)
