"""Other libraries around a copy of a model. They live in an environment of their own (README.md); without them we run alone."""

import copy
from importlib.util import find_spec
from typing import Any

from transformers import PreTrainedModel


def bridge(model: PreTrainedModel) -> Any:
    """TransformerLens' bridge with raw weights, None where it is not installed."""
    if find_spec("transformer_lens") is None:
        return _absent("transformer-lens")
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    made = build_bridge_from_module(copy.deepcopy(model), architecture=type(model).__name__, hf_config=model.config)
    return made.eval()


def envoy(model: PreTrainedModel) -> Any:
    """nnsight's wrapper, None where it is not installed."""
    if find_spec("nnsight") is None:
        return _absent("nnsight")
    from nnsight import NNsight

    return NNsight(copy.deepcopy(model))


def part(wrapped: Any, name: str) -> Any:
    """The part of nnsight's wrapper that stands for a module by its dotted name."""
    for step in name.split("."):
        wrapped = wrapped[int(step)] if step.isdigit() else getattr(wrapped, step)
    return wrapped


def _absent(name: str) -> None:
    print(f"{name} is not installed here and is left out")
