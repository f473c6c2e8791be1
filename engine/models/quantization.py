"""Weights in 4 or 8 bits, by bitsandbytes: what is asked of transformers, and where it cannot be had."""

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import ModelError
from engine.models.memory import stored_config
from engine.spec.base import ModelRef

if TYPE_CHECKING:
    import torch


def quantization_options(ref: ModelRef, device: "torch.device | None") -> dict[str, Any]:
    """Arguments of `from_pretrained` for the precision that `ref` asks for; empty without quantisation.

    Matrices of the layers are stored in fewer bits; embeddings, head, norms and biases stay as they are. 4 bits round the weights only and
    compute in the model's dtype. 8 bits (LLM.int8) round the activations of each token too, except in columns with an outlier above 6,
    which is looked for in the whole batch: what else is in the batch can change a row a little.

    Args:
        ref: the model.
        device: where it goes; None for several.

    Raises:
        ModelError: bitsandbytes is not installed, or does not work on that device.
    """
    if ref.quantization is None:
        return {}
    _refuse_where_impossible(ref, device)
    import torch
    from transformers import BitsAndBytesConfig

    if ref.quantization == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        dtype = getattr(torch, ref.dtype)
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=ref.quantization, bnb_4bit_compute_dtype=dtype)
    place = {"": str(device)} if device else None
    return {"quantization_config": config, **({"device_map": place} if place else {})}


def refuse_quantized_twice(ref: ModelRef, folder: Path) -> None:
    """Refuses to quantise weights that are stored in fewer bits already.

    Raises:
        ModelError: they are.
    """
    if ref.quantization and "quantization_config" in stored_config(folder):
        raise ModelError(
            f"'{ref.id}' is stored in fewer bits already, so quantization '{ref.quantization}' cannot be applied.",
            next_step="Leave quantization out.",
        )


def _refuse_where_impossible(ref: ModelRef, device: "torch.device | None") -> None:
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            f"quantization '{ref.quantization}' of '{ref.id}' needs the package bitsandbytes, which is not installed.",
            next_step="Install it with 'pip install bitsandbytes', or leave quantization out.",
        )
    supported = _supported_devices()
    if device is not None and device.type not in supported:
        raise ModelError(
            f"quantization '{ref.quantization}' does not work on {device.type}; bitsandbytes has {', '.join(sorted(supported))}.",
            next_step="Choose another device, or leave quantization out.",
        )


def _supported_devices() -> frozenset[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing it uses what torch is about to drop
        import bitsandbytes
    # It would say for every layer that 8 bits compute in float16, which the documentation says once.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return frozenset(bitsandbytes.supported_torch_devices)
