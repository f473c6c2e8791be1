"""philab in scripts and notebooks: `import philab`. Every name loads its module on first use, so importing costs nothing."""

from importlib import import_module
from typing import Any

_PLACES = {
    "run": "engine.runner",
    "load_model": "engine.models.loading",
    "load_dataset": "engine.text.datasets",
    "read_spec": "engine.spec",
    "parse_spec": "engine.spec",
    "shipped_specs": "engine.spec.reading",
    "apply_preset": "engine.presets",
    "FolderRecorder": "engine.folder",
    "read_folder": "engine.folder",
    "AblationSpec": "engine.spec",
    "DatasetRef": "engine.spec",
    "Limits": "engine.spec",
    "ModelRef": "engine.spec",
    "Rows": "engine.spec",
    "Site": "engine.hooks.sites",
    "Result": "engine.result",
    "LabError": "engine.errors",
}

__all__ = sorted(_PLACES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """The public object of that name."""
    if name not in _PLACES:
        raise AttributeError(f"module 'philab' has no '{name}'; it offers: {', '.join(__all__)}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return list(__all__)


if __name__ == "__main__":
    raise SystemExit(import_module("scripts.philab").main())
