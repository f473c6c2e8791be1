"""The sweep, which recomputes only what an edit can change, against one whole forward pass for every edit."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from engine.experiments.checks.subject import Measured, Subject, largest
from engine.experiments.metrics import readout_for
from engine.experiments.prompts import Prompt
from engine.hooks.batch import Batch
from engine.hooks.change import Change
from engine.hooks.replay import Readout, Variant
from engine.hooks.sites import Site
from engine.hooks.sweep import naive_sweep, sweep

TOKENS = 12
"""Tokens of each prompt that are swept; every variant of the naive way is a whole forward pass."""


def replay_of_all(subject: Subject) -> Measured:
    """The loss over whole prompts with one part set to zero: some heads, the attention output and the MLP output of each layer."""
    return _replayed(subject, last_only=False)


def replay_of_last(subject: Subject) -> Measured:
    """The loss of the last token alone, for which the sweep leaves out what the other positions would need in the last layer."""
    return _replayed(subject, last_only=True)


def _replayed(subject: Subject, *, last_only: bool) -> Measured:
    prompts = [_prompt(number, tokens[:TOKENS], last_only=last_only) for number, tokens in enumerate(subject.prompts[:2])]
    batch = Batch.of([prompt.tokens for prompt in prompts], device=subject.loaded.device)
    readout = readout_for("target_loss" if last_only else "loss", prompts, subject.loaded.device)
    variants = [[Change(site=site, op="zero")] for layer in subject.layers for site in _sites(subject, layer)]
    swept = _swept(subject, batch, variants, readout)
    found: list[tuple[float, str]] = []
    for variant, values in zip(variants, swept, strict=True):
        subject.pause()
        naive = naive_sweep(subject.loaded, batch, [variant], readout)[0]
        found.append((float((values - naive).abs().max()), f"at {variant[0].site.label}"))
    scale = max(1.0, float(swept.abs().max()))
    return largest(found, subject.tolerance * scale, "nats")


def _prompt(number: int, tokens: tuple[int, ...], *, last_only: bool) -> Prompt:
    return Prompt(id=str(number), tokens=tokens, scored_from=len(tokens) - 1 if last_only else 1)


def _sites(subject: Subject, layer: int) -> list[Site]:
    """What is set to zero in a layer, as far as the model has it."""
    anatomy = subject.loaded.anatomy
    block = anatomy.blocks[layer]
    heads = [Site(layer=layer, name="z", head=head) for head in subject.heads_of(layer)] if block.attn_out_proj is not None else []
    attn = [Site(layer=layer, name="attn_out")] if block.attn_end is not None else []
    mlp = [Site(layer=layer, name="mlp_out")] if block.mlp_end is not None else []
    return heads + attn + mlp


def _swept(subject: Subject, batch: Batch, variants: Sequence[Variant], readout: Readout) -> Float[Tensor, "variant batch"]:
    values = torch.full((len(variants), batch.size), torch.nan, device=batch.input_ids.device)
    for part in sweep(subject.loaded, batch, variants, readout):
        subject.pause()
        if part.variants:
            values[list(part.variants)] = part.values.float()
    return values
