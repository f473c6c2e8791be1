"""Where a model takes its inputs."""

from typing import Any

import torch
from transformers import PreTrainedModel


def input_device(model: PreTrainedModel) -> torch.device:
    """The device for token ids: the one on which the embedding is computed, wherever its weights wait meanwhile."""
    embedding = model.get_input_embeddings()
    hook: Any = getattr(embedding, "_hf_hook", None)  # accelerate fetches weights and inputs just before they are needed
    planned = [getattr(one, "execution_device", None) for one in getattr(hook, "hooks", [hook])]
    device = next((torch.device(place) for place in planned if place is not None), None)
    return device or next(embedding.parameters()).device
