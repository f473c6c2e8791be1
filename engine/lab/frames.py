"""Results as tidy tables: one row per site, check or number."""

from typing import TYPE_CHECKING, Any

from engine.custom import Answer, CustomResult
from engine.result import AblationResult, Effects, SelfTestResult

if TYPE_CHECKING:
    import pandas

Rows = list[dict[str, Any]]


def rows_of(result: Answer) -> Rows:
    """The numbers of a result, one mapping per row, all with the same names."""
    match result:
        case AblationResult():
            return _effects(result.effects)
        case SelfTestResult():
            return [check.model_dump() for check in result.checks]
        case CustomResult():
            return [{"metric": name, "value": value} for name, value in result.metrics.items()]
        case _:
            return [_flat(result.model_dump(mode="json"))]


def frame_of(result: Answer) -> "pandas.DataFrame":
    """The same as a pandas table; indices of layers and heads stay whole numbers where some are missing."""
    import pandas

    frame = pandas.DataFrame(rows_of(result))
    whole = [name for name in ("layer", "head", "site_unit") if name in frame]
    return frame.astype(dict.fromkeys(whole, "Int64"))


def _effects(effects: Effects) -> Rows:
    by_unit = any(site.unit is not None for site in effects.sites)
    return [
        {
            "site": site.label,
            "layer": site.layer,
            "name": site.name,
            "head": site.head,
            **({"site_unit": site.unit} if by_unit else {}),
            "estimate": effects.estimate[at],
            "se": effects.se[at],
            "low": effects.low[at],
            "high": effects.high[at],
            "n": effects.n,
            "metric": effects.metric,
            "unit": effects.unit,
        }
        for at, site in enumerate(effects.sites)
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings with dots in their names."""
    flat = dict[str, Any]()
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
