"""philab in scripts and notebooks: `import philab`. Every name loads its module on first use, so importing costs nothing."""

from importlib import import_module
from typing import Any

_PLACES = {
    "run": "engine.lab.runs",
    "Finished": "engine.lab.runs",
    "load_model": "engine.lab.model",
    "Model": "engine.lab.model",
    "experiment": "engine.lab.experiment",
    "Edit": "engine.hooks.edit",
    "TensorRef": "engine.hooks.edit",
    "When": "engine.hooks.edit",
    "positions": "engine.hooks",
    "Greedy": "engine.decoding",
    "Sample": "engine.decoding",
    "Stop": "engine.decoding",
    "Site": "engine.hooks.sites",
    "as_python": "engine.as_python",
    "load_dataset": "engine.text.datasets",
    "read_spec": "engine.spec",
    "parse_spec": "engine.spec",
    "shipped_specs": "engine.spec.reading",
    "apply_preset": "engine.presets",
    "FolderRecorder": "engine.folder",
    "read_folder": "engine.folder",
    "AblationSpec": "engine.spec",
    "SelfTestSpec": "engine.spec",
    "parse_result": "engine.result",
    "estimate_memory": "engine.models.memory",
    "forget_models": "engine.models.loading",
    "DatasetRef": "engine.spec",
    "Limits": "engine.spec",
    "ModelRef": "engine.spec",
    "Rows": "engine.spec",
    "LabError": "engine.errors",
}

__all__ = sorted(_PLACES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """The public object of that name."""
    if name not in _PLACES:
        raise AttributeError(f"module 'philab' has no '{name}'; it offers: {', '.join(__all__)}")
    place = _PLACES[name]
    return import_module(f"{place}.{name}") if name == "positions" else getattr(import_module(place), name)


def __dir__() -> list[str]:
    """The public names."""
    return list(__all__)


if __name__ == "__main__":
    raise SystemExit(import_module("scripts.philab").main())
