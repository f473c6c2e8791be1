"""Weights of a loaded model as plain matrices, for what cannot be computed from activations alone."""

from jaxtyping import Float
from torch import Tensor, nn

from engine.errors import ModelError

TRANSPOSED = frozenset({"Conv1D"})
"""Classes that keep their matrix as [in, out]; all others keep it as [out, in]."""
FEWER_BITS = {"Linear4bit": "4 bits", "Linear8bitLt": "8 bits"}


def dense_weight(module: nn.Module, name: str = "the projection") -> Float[Tensor, "d_in d_out"]:
    """The matrix W of a projection, so that it gives x @ W + bias. A view: it must not be changed.

    Args:
        module: a linear projection of a loaded model.
        name: what to call it in an error.

    Raises:
        ModelError: the weights are stored in fewer bits, or wait outside the device.
    """
    weight = getattr(module, "weight", None)
    kind = type(module).__name__
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise ModelError(f"{name} ({kind}) has no weight matrix.", next_step="Ask for site 'z' instead.")
    if kind in FEWER_BITS or not weight.is_floating_point():
        raise ModelError(
            f"{name} is stored in {FEWER_BITS.get(kind, str(weight.dtype))}, so there is no exact matrix of it.",
            next_step="Load the model without quantization, or ask for site 'z'.",
        )
    if weight.is_meta:
        raise ModelError(
            f"{name} is kept off the device between forward passes (device map), so there is no matrix of it at hand.",
            next_step="Load the model on one device, or ask for site 'z'.",
        )
    return weight if kind in TRANSPOSED else weight.T
