"""Models by a short name: what `phi-2` means on the hub, and how large it is. Imports without torch."""

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Annotated, Literal

import yaml
from pydantic import Field

from engine.values import Frozen


class ModelPreset(Frozen):
    """A model that has a short name here."""

    key: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", description="The short name.")]
    hub_id: Annotated[str | None, Field(description="Id on the hub; none for a shipped model, whose name is its key.")] = None
    aliases: Annotated[tuple[str, ...], Field(description="Other short names for it.")] = ()
    parameters: Annotated[int, Field(gt=0, description="All parameters; a head that shares the embedding's weights is counted once.")]
    dense_parameters: Annotated[int, Field(gt=0, description="Those that stay dense in 4 and 8 bits.")]
    context_tokens: Annotated[int, Field(gt=0, description="Longest text to plan for, in tokens.")]
    dtype: Annotated[Literal["float32", "float16", "bfloat16"], Field(description="Precision of the published weights.")]
    gated: Annotated[bool, Field(description="Whether its owner wants terms accepted on the hub.")] = False
    family: Annotated[str, Field(description="Model type of transformers.")]
    note: Annotated[str, Field(max_length=120, description="One line about it.")]

    @property
    def model_id(self) -> str:
        """What a spec stores: the hub id, or the name of a shipped model."""
        return self.hub_id or self.key


@cache
def model_presets() -> Mapping[str, ModelPreset]:
    """All presets by key, in the order of the file."""
    text = (files("engine") / "resources" / "models.yaml").read_text(encoding="utf-8")
    return MappingProxyType({key: ModelPreset(key=key, **values) for key, values in yaml.safe_load(text).items()})


def full_id(name: str) -> str:
    """The hub id behind a short name; any other name as it is, so that both ways to write a model are one question."""
    preset = _by_short_name().get(name)
    return preset.model_id if preset else name


def preset_of(name: str) -> ModelPreset | None:
    """The preset with that short name or hub id."""
    by_id = {preset.model_id: preset for preset in model_presets().values()}
    return by_id.get(full_id(name))


def close_names(name: str) -> list[str]:
    """Up to three names of presets that are spelled like `name`, the closest first. Suggestions only: nothing is chosen."""
    known = [*_by_short_name(), *(preset.model_id for preset in model_presets().values())]
    spelled = {each.lower(): each for each in known}
    last = name.lower().rsplit("/", 1)[-1]
    found = [*get_close_matches(name.lower(), spelled, n=3), *get_close_matches(last, spelled, n=3)]
    return list(dict.fromkeys(spelled[match] for match in found))[:3]


@cache
def _by_short_name() -> Mapping[str, ModelPreset]:
    presets = model_presets().values()
    return MappingProxyType({name: preset for preset in presets for name in (preset.key, *preset.aliases)})
