"""How coarsely a model computes."""

import torch
from transformers import PreTrainedModel

INT8_STEP = 1 / 127
"""Rounding of activations on their way into 8-bit weights."""


def rounding_step(model: PreTrainedModel) -> float:
    """The relative rounding of one stored value: that of the model's dtype, or of 8-bit weights where it has any."""
    step = float(torch.finfo(model.dtype).eps)
    return max(step, INT8_STEP) if any(weight.dtype == torch.int8 for weight in model.parameters()) else step
