"""What each head adds to the residual stream: its slice of z times its rows of W_O."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from engine.errors import ModelError


def output_weight(projection: nn.Module, n_heads: int) -> Float[Tensor, "head d_head d_model"]:
    """W_O of an attention output projection, cut into heads; a view of the model's own weights.

    Raises:
        ModelError: the weights are quantised, or not in memory.
    """
    weight = projection.weight
    assert isinstance(weight, Tensor), f"{type(projection).__name__} has no weight"
    if not weight.is_floating_point() or not isinstance(weight.dtype, torch.dtype) or weight.dim() != 2:
        raise ModelError(
            f"what one head adds needs W_O, and this model keeps it quantised ({str(weight.dtype).removeprefix('torch.')}).",
            next_step="Load the model without quantization, or ask for site 'z' instead of 'head_out'.",
        )
    if weight.device.type == "meta":
        raise ModelError(
            "what one head adds needs W_O, and this model's weights are kept outside of memory.",
            next_step="Load the model without offloading, or ask for site 'z' instead of 'head_out'.",
        )
    by_input = weight.T if isinstance(projection, nn.Linear) else weight  # Conv1D keeps [in, out]
    return by_input.reshape(n_heads, -1, by_input.shape[-1])


def contributions(
    z: Float[Tensor, "batch pos width"], weight: Float[Tensor, "head d_head d_model"]
) -> Float[Tensor, "batch pos head d_model"]:
    """What each head adds; their sum and the projection's bias make the projection's output."""
    by_head = z.unflatten(-1, weight.shape[:2])
    return torch.einsum("bthd,hdm->bthm", by_head, weight)
