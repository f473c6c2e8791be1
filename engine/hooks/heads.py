"""What each head adds to the residual stream: its slice of z times its rows of W_O."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from engine.hooks.dense_weight import dense_weight


def output_weight(projection: nn.Module, n_heads: int) -> Float[Tensor, "head d_head d_model"]:
    """W_O of an attention output projection, cut into heads; a view of the model's own weights.

    Raises:
        ModelError: the weights are stored in fewer bits, or wait outside the device.
    """
    by_input = dense_weight(projection, "W_O, which says what one head adds,")
    return by_input.reshape(n_heads, -1, by_input.shape[-1])


def contributions(
    z: Float[Tensor, "batch pos width"], weight: Float[Tensor, "head d_head d_model"]
) -> Float[Tensor, "batch pos head d_model"]:
    """What each head adds; their sum and the projection's bias make the projection's output."""
    by_head = z.unflatten(-1, weight.shape[:2])
    return torch.einsum("bthd,hdm->bthm", by_head, weight)
