"""When memory runs out: how that is recognised, whatever the device, and how memory is given back."""

import gc

import torch

_SIGNS = ("out of memory", "not enough memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")
"""Parts of the texts of errors that have no type of their own: of processors, of older MPS, and of CUDA's libraries."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def give_memory_back() -> None:
    """Lets go of what nobody uses any more, torch's own caches included. Call it when the error is handled: it holds tensors."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
