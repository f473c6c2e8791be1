"""Models that were broken in one way each, so that what should notice it can be seen to notice it."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import GPT2Model, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP


class Noisy(LlamaDecoderLayer):
    """Never gives the same twice."""

    def forward(self, *args: Any, **more: Any) -> torch.Tensor:
        out = super().forward(*args, **more)
        return out + 1e-3 * torch.randn_like(out)


class Leaky(LlamaDecoderLayer):
    """Adds something to the stream that is neither attention nor MLP."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        return super().forward(hidden_states, *args, **more) + 1e-3 * hidden_states


class Blurred(LlamaDecoderLayer):
    """Looks at all columns of its batch, padding and what comes later among them."""

    def forward(self, *args: Any, **more: Any) -> torch.Tensor:
        out = super().forward(*args, **more)
        return out + 1e-2 * out.mean(1, keepdim=True)


class Stepwise(LlamaDecoderLayer):
    """Is another layer when it is given a single token."""

    def forward(self, *args: Any, **more: Any) -> torch.Tensor:
        out = super().forward(*args, **more)
        return out * 1.5 if out.shape[1] == 1 else out


class Talking(LlamaDecoderLayer):
    """Speaks to the layers above by another way than the stream."""

    told = torch.zeros(())

    def forward(self, *args: Any, **more: Any) -> torch.Tensor:
        out = super().forward(*args, **more)
        if self.self_attn.layer_idx == 0:
            Talking.told = out[..., 0].std()
        return out + 0.1 * Talking.told


class DirectMlp(LlamaMLP):
    """Does its last product without calling the projection."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(self.act_fn(self.gate_proj(x)) * self.up_proj(x), self.down_proj.weight)


class Deaf(GPT2Model):
    """Counts positions from the first column, whatever it is told."""

    @functools.wraps(GPT2Model.forward)
    def forward(self, *args: Any, position_ids: Any = None, **more: Any) -> Any:
        return super().forward(*args, **more)


class Scaled(LlamaForCausalLM):
    """Does something to the logits behind its head."""

    @functools.wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, **more: Any) -> Any:
        output = super().forward(*args, **more)
        output.logits = output.logits * 1.01
        return output


class Particular(LlamaForCausalLM):
    """Notices that it is called by the engine, which says the positions."""

    @functools.wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, position_ids: Any = None, **more: Any) -> Any:
        output = super().forward(*args, position_ids=position_ids, **more)
        output.logits = output.logits + (1e-6 if position_ids is not None else 0) * output.logits.abs().max()
        return output


class Sticky(LlamaForCausalLM):
    """Leaves a hook behind at every call."""

    @functools.wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, **more: Any) -> Any:
        self.lm_head.register_forward_hook(lambda _module, _args, output: output)
        return super().forward(*args, **more)


def layers_of(kind: type[nn.Module]) -> Callable[[PreTrainedModel], None]:
    def put(model: PreTrainedModel) -> None:
        for layer in model.model.layers:  # type: ignore[union-attr]
            layer.__class__ = kind

    return put


def whole(kind: type[nn.Module]) -> Callable[[PreTrainedModel], None]:
    return lambda model: setattr(model, "__class__", kind)


def hear_no_positions(model: PreTrainedModel) -> None:
    model.transformer.__class__ = Deaf  # type: ignore[union-attr]


def skip_a_projection(model: PreTrainedModel) -> None:
    model.model.layers[1].mlp.__class__ = DirectMlp  # type: ignore[union-attr, index]


def scale_between_layers(model: PreTrainedModel) -> None:
    model.model.layers[1].register_forward_pre_hook(lambda _, args: (args[0] * 1.001, *args[1:]))  # type: ignore[union-attr, index]


def scale_a_projection(model: PreTrainedModel) -> None:
    projection = model.model.layers[1].self_attn.o_proj  # type: ignore[union-attr, index]
    projection.forward = lambda z: 1.01 * functional.linear(z, projection.weight)


def scale_z(model: PreTrainedModel) -> None:
    projection = model.model.layers[1].self_attn.o_proj  # type: ignore[union-attr, index]
    projection.register_forward_pre_hook(lambda _, args: (args[0] * 1.001,))


BREAKS: list[tuple[str, str, Callable[[PreTrainedModel], None]]] = [
    ("same twice", "llama", layers_of(Noisy)),
    ("clean = plain", "llama", whole(Particular)),
    ("padded left", "gpt2", hear_no_positions),
    ("padded right", "llama", layers_of(Blurred)),
    ("cached", "llama", layers_of(Stepwise)),
    ("greedy", "llama", layers_of(Stepwise)),
    ("replay, whole prompts", "llama", layers_of(Talking)),
    ("replay, last token", "llama", layers_of(Talking)),
    ("sum of parts", "llama", layers_of(Leaky)),
    ("chain of layers", "llama", scale_between_layers),
    ("head = rows of W_O", "llama", scale_a_projection),
    ("pattern · values = z", "llama", scale_z),
    ("norm and head", "llama", whole(Scaled)),
    ("sites", "llama", skip_a_projection),
    ("nothing left", "llama", whole(Sticky)),
]
"""Check of the self-test, family, and what breaks it."""
