"""How things are said to people: errors, statuses, numbers, times, and text that strangers wrote."""

import re
from datetime import UTC, datetime
from typing import Any

from engine.errors import LabError

STATUS_COLOURS = {
    "queued": "gray",
    "running": "blue",
    "ok": "green",
    "failed": "red",
    "cancelled": "orange",
    "draft": "gray",
    "open": "blue",
    "in_progress": "violet",
    "completed": "green",
    "archived": "gray",
    "waiting": "blue",
    "accepted": "green",
    "refused": "red",
    "unverified": "gray",
    "candidate": "blue",
    "supported": "green",
    "replicated": "green",
    "contested": "orange",
    "null": "violet",
    "withdrawn": "red",
}

FINDING_STATUS_MEANING = {
    "unverified": "too few shards or people so far: no number is claimed",
    "candidate": "an effect with an interval, not yet confirmed across kinds of hardware",
    "supported": "at least 5 shards, 3 contributors and 2 kinds of hardware agree, and chance is ruled out",
    "replicated": "supported, and seen again on other data or another model revision",
    "contested": "there on average, but the next shard could well show the opposite sign",
    "null": "the whole interval is smaller than the smallest effect of interest",
    "withdrawn": "taken back",
}

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~$:&])")
_NOT_PRINTABLE = re.compile(r"[\x00-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2066-\u2069]+")
_BREAK = "\u200b"  # keeps an address from becoming a link


def sentence(error: BaseException) -> str:
    """One sentence for people, as markdown that shows exactly the error's text."""
    if isinstance(error, LabError):
        text = str(error)
        return escape(text[:1].upper() + text[1:])
    return "Something went wrong here. The details are in the log of this instance; trying again is safe."


def escape(text: object, *, at_most: int = 2000) -> str:
    """Text that strangers wrote, so that markdown shows it as it is: no formatting, links, images, icons or colours.

    Control characters and line breaks become one space.
    """
    plain = _NOT_PRINTABLE.sub(" ", str(text))
    plain = plain if len(plain) <= at_most else f"{plain[: at_most - 1]}…"
    unlinked = plain.replace("://", f":{_BREAK}//").replace("@", f"@{_BREAK}").replace("www.", f"www{_BREAK}.")
    return _MARKDOWN.sub(r"\\\1", unlinked)


def badge(status: str) -> str:
    """A status as a coloured markdown badge; only words that we know become one."""
    if status not in STATUS_COLOURS:
        return escape(status)
    return f":{STATUS_COLOURS[status]}-badge[{status.replace('_', ' ')}]"


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """A number with so many decimals, scientific where those would hide it; a dash for none."""
    if value is None:
        return "–"
    style = f"{'+' if sign else ''}.{digits}{'f' if value == 0 or 10**-digits <= abs(value) < 1e5 else 'e'}"
    return format(value, style).replace("-", "−")


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """An interval as `[low, high]`; a dash for none."""
    return "–" if low is None or high is None else f"[{number(low, digits)}, {number(high, digits)}]"


def share(value: float | None) -> str:
    """A probability or share in per cent."""
    return "–" if value is None else f"{100 * value:.0f} %"


def duration(seconds: float | None) -> str:
    """A time span in the two largest units that say something."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def size(count: int) -> str:
    """Bytes in a readable unit."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def ago(when: datetime | None, now: datetime | None = None) -> str:
    """How long ago something was, in one unit."""
    if when is None:
        return "–"
    seconds = ((now or datetime.now(UTC)) - when).total_seconds()
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= 2 * length or (unit != "d" and seconds >= length):
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"


def plural(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def eta(fraction: float, started: datetime | None, now: datetime | None = None) -> str:
    """When a running job will be done if it goes on like this; empty while nobody can say."""
    if started is None or not 0.02 < fraction < 1:
        return ""
    spent = ((now or datetime.now(UTC)) - started).total_seconds()
    return f"about {duration(spent * (1 - fraction) / fraction)} left"


def short(identity: Any) -> str:
    """The first 12 characters of a hash, the last 8 of an id (its head is the time and much alike)."""
    text = str(identity)
    return text[-8:] if len(text) == 36 else text[:12]
