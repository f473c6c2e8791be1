"""Results on a terminal: progress lines, and the largest effects as a table."""

import sys
import time

from engine.result import AblationResult, AnyResult, Check, SelfTestResult

TOP = 10
OUTCOMES: dict[bool | None, str] = {True: "passed", False: "FAILED", None: "not applicable"}


class ProgressLine:
    """Shows how far a run is: one line that is rewritten on a terminal, a line per tenth elsewhere."""

    def __init__(self) -> None:
        """Starts the clock with the first news, so that loading a model counts for nothing."""
        self._started: float | None = None
        self._tenth = -1
        self._live = sys.stderr.isatty()

    def __call__(self, fraction: float, message: str) -> None:
        """Shows the share that is done, 0 to 1, and what happens now."""
        line = f"{fraction:4.0%}  {message}{self._remaining(fraction)}"
        if self._live:
            print(f"\r\033[K{line}", end="\n" if fraction >= 1 else "", file=sys.stderr, flush=True)
        elif int(fraction * 10) > self._tenth:
            self._tenth = int(fraction * 10)
            print(line, file=sys.stderr, flush=True)

    def _remaining(self, fraction: float) -> str:
        if self._started is None:
            self._started = time.monotonic()
        elapsed = time.monotonic() - self._started
        if fraction < 0.05 or fraction >= 1 or elapsed < 2:
            return ""
        return f"  (about {elapsed * (1 - fraction) / fraction:.0f} s left)"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Text columns, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [[header[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(header[1:], widths[1:], strict=True))]]
    lines.append(["-" * width for width in widths])
    lines += [[row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def describe(result: AnyResult, *, top: int = TOP) -> str:
    """A result as text, by its kind, with its notes."""
    told = _effects(result, top) if isinstance(result, AblationResult) else _checks(result)
    return "\n".join([*told, *(f"note: {note}" for note in result.notes)])


def _checks(result: SelfTestResult) -> list[str]:
    """One line per check, then in full what did not pass and which sites there are, and the sum."""
    rows = [[check.name, OUTCOMES[check.passed], *_numbers(check), check.unit] for check in result.checks]
    more = [f"{check.name}: {check.about}. {check.detail}" for check in result.checks if not check.passed or check.unit == "sites"]
    made, failed = sum(check.passed is not None for check in result.checks), len(result.failed)
    shown = table(["check", "outcome", "difference", "allowed", "unit"], rows)
    return [shown, "", *more, f"{made} checks made, {failed} failed, {len(result.checks) - made} not applicable."]


def _numbers(check: Check) -> list[str]:
    return ["" if value is None else f"{value:.2g}" for value in (check.difference, check.tolerance)]


def _effects(result: AblationResult, top: int) -> list[str]:
    """The metric of the unedited model, and the largest effects with their 95 % intervals."""
    effects, clean = result.effects, result.clean
    order = sorted(range(len(effects.sites)), key=lambda i: -abs(effects.estimate[i]))[:top]
    rows = [
        [effects.sites[i].label, f"{effects.estimate[i]:+.4f}", f"{effects.low[i]:+.4f} .. {effects.high[i]:+.4f}", str(effects.n)]
        for i in order
    ]
    head = (
        f"{effects.metric} of the unedited model: {clean.mean:.4f} {effects.unit} ({clean.low:.4f} .. {clean.high:.4f}, {clean.n} prompts)"
    )
    shown = f"largest {len(order)} of {len(effects.sites)} effects, in {effects.unit}:"
    return [head, "", shown, table(["site", "effect", "95 % interval", "n"], rows)]
