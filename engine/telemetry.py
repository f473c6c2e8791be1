"""The shape of the residual stream, layer by layer: how long its vectors are and how many directions they use."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine.errors import DatasetError
from engine.experiments.prompts import Prompt, text_prompts
from engine.hooks.batch import Batch, forward
from engine.hooks.capture import captured
from engine.hooks.sites import Site
from engine.models.loading import LoadedModel
from engine.text.datasets import Row

SCHEMA_VERSION = 1
MAX_TOKENS = 1024
"""Token positions used at most; the first ones in the order of the rows."""
BATCH = 8


def measure_telemetry(loaded: LoadedModel, rows: Sequence[Row], *, max_length: int = 512, max_tokens: int = MAX_TOKENS) -> dict[str, Any]:
    """Per layer, of resid_post over the tokens of some texts: mean norm, participation ratio and entropy effective rank.

    The participation ratio is (Σλ)² / Σλ² and the effective rank exp(−Σ p log p) with p = λ / Σλ, both of the eigenvalues λ of the
    activations' covariance: 1 if they lie on a line, d_model if they fill all directions alike. Neither counts features. The first
    token of each text is left out, because its outsized norm would decide both.

    Raises:
        DatasetError: a row is too long, or fewer than two tokens are left.

    Source: Gao et al. 2017 (participation ratio); Roy and Vetterli 2007 (effective rank).
    """
    prompts = _enough(text_prompts(rows, loaded, max_length=max_length), max_tokens)
    layers = _resid_post(loaded, prompts, max_tokens)
    tokens = layers[0].shape[0]
    if tokens < 2:
        raise DatasetError(f"the rows leave {tokens} token(s) behind each first one; a covariance needs 2.", next_step="Give longer texts.")
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "residual_geometry",
        "site": "resid_post",
        "model_fingerprint": loaded.fingerprint,
        "d_model": loaded.anatomy.d_model,
        "prompts": len(prompts),
        "tokens": tokens,
        "dropped": "position 0 of each prompt",
        "layers": [{"layer": layer, **describe_points(points)} for layer, points in enumerate(layers)],
    }


def describe_points(points: Tensor) -> dict[str, float]:
    """Mean norm, participation ratio and effective rank of points [n, d]; both ranks are 0 where all points are the same."""
    exact = points.double()
    centred = exact - exact.mean(0)
    small = centred.T @ centred if centred.shape[0] >= centred.shape[1] else centred @ centred.T
    spectrum = torch.linalg.eigvalsh(small).clamp(min=0)
    total = spectrum.sum()
    share = spectrum[spectrum > 0] / total
    return {
        "mean_norm": exact.norm(dim=-1).mean().item(),
        "participation_ratio": (1 / share.square().sum()).item() if len(share) else 0.0,
        "effective_rank": (-(share * share.log()).sum()).exp().item() if len(share) else 0.0,
    }


def _enough(prompts: Sequence[Prompt], max_tokens: int) -> list[Prompt]:
    """The first prompts that together have enough tokens."""
    taken, tokens = list[Prompt](), 0
    for prompt in prompts:
        if tokens >= max_tokens:
            break
        taken.append(prompt)
        tokens += len(prompt.tokens) - 1
    return taken


def _resid_post(loaded: LoadedModel, prompts: Sequence[Prompt], max_tokens: int) -> list[Tensor]:
    """Per layer [tokens, d_model], position 0 and padding left out."""
    sites = [Site(layer=layer, name="resid_post") for layer in range(loaded.anatomy.n_layers)]
    collected: list[list[Tensor]] = [[] for _ in sites]
    for start in range(0, len(prompts), BATCH):
        batch = Batch.of([prompt.tokens for prompt in prompts[start : start + BATCH]], device=loaded.device)
        with captured(loaded, sites) as got:
            forward(loaded.model, batch, torch.zeros(1, dtype=torch.long, device=loaded.device))
        wanted = batch.attention_mask.bool() & (batch.position_ids > 0)
        for layer, site in enumerate(sites):
            collected[layer].append(got[site][wanted].float().cpu())
    return [torch.cat(parts)[:max_tokens] for parts in collected]
