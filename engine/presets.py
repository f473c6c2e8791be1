"""Hardware tiers as overrides of a spec's limits."""

from functools import cache
from importlib.resources import files

import yaml

from engine.errors import SpecError
from engine.spec.any import AnyKind
from engine.spec.base import Frozen, Limits


class Preset(Frozen):
    """Caps of one tier; None leaves what the spec says."""

    records: int | None
    layers: int | None
    heads: int | None
    max_length: int
    batch_size: int


@cache
def presets() -> dict[str, Preset]:
    """All shipped presets by name."""
    text = (files("engine") / "resources" / "presets.yaml").read_text(encoding="utf-8")
    return {name: Preset.model_validate(values) for name, values in yaml.safe_load(text).items()}


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        SpecError: there is none.
    """
    try:
        return presets()[name]
    except KeyError:
        raise SpecError(f"unknown preset '{name}'; expected one of: {', '.join(presets())}.") from None


def apply_preset(spec: AnyKind, name: str) -> AnyKind:
    """The spec under the caps of a preset: the smaller of both limits counts. It is another spec with another hash."""
    tier = preset(name)
    limits = Limits(
        records=_smaller(spec.limits.records, tier.records),
        layers=_smaller(spec.limits.layers, tier.layers),
        heads=_smaller(spec.limits.heads, tier.heads),
        max_length=min(spec.limits.max_length, tier.max_length),
        batch_size=tier.batch_size,
    )
    return spec.model_copy(update={"limits": limits})


def _smaller(one: int | None, other: int | None) -> int | None:
    given = [value for value in (one, other) if value is not None]
    return min(given, default=None)


def cuts(name: str, *, rows: int, layers: int, heads: int) -> list[str]:
    """What a preset would leave out of work of that size, one phrase each; empty when all of it is done.

    A task's shard counts only as a whole, so a preset that cuts it cannot be used for it.
    """
    tier = preset(name)
    wanted = {"records": (rows, tier.records), "layers": (layers, tier.layers), "heads": (heads, tier.heads)}
    return [f"{cap} of {size} {what}" for what, (size, cap) in wanted.items() if cap is not None and cap < size]
