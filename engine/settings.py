"""The one settings object: defaults < app.yaml < environment < flags. Imports without torch."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from engine.errors import SpecError
from engine.model_presets import full_id

Mode = Literal["local", "hosted"]
Device = Literal["auto", "cuda", "mps", "cpu", "spread"]


class Section(BaseModel):
    """Settings are read once and do not change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Platform(Section):
    """The community instance that this lab talks to."""

    enabled: Annotated[bool, Field(description="Offer community features at all.")] = True
    central_url: Annotated[str | None, Field(pattern=r"^https?://", description="Address of the instance.")] = None
    auto_submit: Annotated[bool, Field(description="Send finished runs of a task without asking.")] = False
    api_key: Annotated[str | None, Field(repr=False, description="Key for that instance.")] = None
    contributor_id: str | None = None


class Geometry(Section):
    """What the geometry viewer opens with."""

    data_source: Literal["local", "remote"] = "local"
    remote_url: Annotated[str | None, Field(pattern=r"^https?://")] = None
    default_view: Literal["my_runs", "all"] = "all"


class AllowedModel(Section):
    """A model that a hosted instance may run. A short name such as `phi-2` becomes the hub id that it stands for, as in a spec."""

    id: Annotated[str, AfterValidator(full_id)]
    revision: Annotated[str | None, Field(pattern=r"^[0-9a-f]{40}$", description="None for shipped models only.")] = None


class Settings(Section):
    """Everything that can be configured. Field names are the keys of app.yaml."""

    mode: Mode = "local"
    database_url: Annotated[str | None, Field(repr=False, description="Postgres 15 or newer; none starts the embedded one.")] = None
    data_dir: Annotated[Path, Field(description="Database, store and models.")]
    config_dir: Annotated[Path, Field(description="app.yaml and the owner's key.")]
    store: Annotated[str | None, Field(description="fsspec URL of the artefact store; none is a folder in data_dir.")] = None
    default_model: str = "philab-micro"
    allowed_models: tuple[AllowedModel, ...] = (AllowedModel(id="philab-micro"), AllowedModel(id="planted-induction"))
    model_cache_gb: Annotated[
        float | None, Field(ge=0, description="GiB of models kept loaded for the next run; none: half of the memory, 0: keep none.")
    ] = None
    device: Annotated[
        Device,
        Field(description="Where models run if a command does not say so; 'spread' uses all devices, the memory and the disk."),
    ] = "auto"
    registration: Literal["open", "closed"] = "open"
    secret_key: Annotated[str | None, Field(repr=False, description="Pepper of the key hashes; made on first start when left out.")] = None
    worker: Annotated[bool, Field(description="Run a worker inside the web process.")] = True
    public_url: Annotated[str | None, Field(pattern=r"^https?://", description="Address under which visitors reach this instance.")] = None
    platform: Platform = Platform()
    geometry: Geometry = Geometry()


ENVIRONMENT: dict[str, tuple[str, ...]] = {
    "PHILAB_MODE": ("mode",),
    "DATABASE_URL": ("database_url",),
    "PHILAB_DATA": ("data_dir",),
    "PHILAB_CONFIG": ("config_dir",),
    "PHILAB_STORE": ("store",),
    "PHILAB_DEFAULT_MODEL": ("default_model",),
    "PHILAB_MODEL_CACHE_GB": ("model_cache_gb",),
    "PHILAB_DEVICE": ("device",),
    "PHILAB_REGISTRATION": ("registration",),
    "SECRET_KEY": ("secret_key",),
    "PHILAB_WORKER": ("worker",),
    "PUBLIC_BASE_URL": ("public_url",),
    "PHILAB_CENTRAL_URL": ("platform", "central_url"),
    "PHILAB_API_KEY": ("platform", "api_key"),
    "PHILAB_CONTRIBUTOR_ID": ("platform", "contributor_id"),
}
"""Environment variable -> place in the settings."""


def default_data_dir() -> Path:
    """`/var/lib/philab` for root, else the platform's folder for user data."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Path("/var/lib/philab")
    return platformdirs.user_data_path("philab")


def read_settings(environment: Mapping[str, str] | None = None, **flags: Any) -> Settings:
    """The settings of this process; a flag that is None counts as not given.

    Raises:
        SpecError: a key is unknown or a value is wrong; the text names it.
    """
    environment = os.environ if environment is None else environment
    config_dir = Path(environment.get("PHILAB_CONFIG") or platformdirs.user_config_path("philab"))
    values: dict[str, Any] = {"data_dir": default_data_dir(), "config_dir": config_dir}
    for file in (config_dir / "app.yaml", Path("config/app.yaml")):
        if file.is_file():
            values = _merged(values, _read_yaml(file))
    for name, place in ENVIRONMENT.items():
        if environment.get(name):
            values = _merged(values, _nested(place, environment[name]))
    values = _merged(values, {key: value for key, value in flags.items() if value is not None})
    return _checked(values)


def _checked(values: dict[str, Any]) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as wrong:
        first = wrong.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SpecError(f"setting '{place}': {first['msg']}", next_step="See docs/operations.md for all settings.") from wrong


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as wrong:
        raise SpecError(f"{file} cannot be read: {wrong}") from wrong
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SpecError(f"{file} holds {type(values).__name__}, expected 'key: value' lines")
    return values


def _nested(place: tuple[str, ...], value: str) -> dict[str, Any]:
    for key in reversed(place):
        value = {key: value}  # type: ignore[assignment]
    return value  # type: ignore[return-value]


def _merged(low: dict[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        inside = merged.get(key)
        merged[key] = _merged(inside, value) if isinstance(inside, dict) and isinstance(value, Mapping) else value
    return merged
