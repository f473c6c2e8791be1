"""Writes transformer_lens.json: what TransformerLens finds in the tiny models of `tests/plugin_engine.py`.

The bridge of TransformerLens is put around the very models that the tests use, with raw weights: no folding, no centring. Each prompt
runs alone, so that nothing is padded. Run it in the peers' environment (benchmarks/README.md says how to make it), from the root:

    python -m tests.reference.make_transformer_lens
"""

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

from tests.plugin_engine import FAMILIES, tiny_model
from tests.reference.slices import COLUMNS, HEADS, LAYER, POSITIONS, PROMPTS, of_logits, of_site, weights_hash

FILE = Path(__file__).with_name("transformer_lens.json")
IN_LAYER = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "neurons": "mlp.hook_post",
    "z": "attn.hook_z",
    "q": "attn.hook_rot_q",
    "k": "attn.hook_rot_k",
    "v": "attn.hook_v",
    "scores": "attn.hook_attn_scores",
    "pattern": "attn.hook_pattern",
}
"""Site of ours -> the hook within a layer that shows it, where a model has it."""
HOOKS = {
    **{site: f"blocks.{LAYER}.{hook}" for site, hook in IN_LAYER.items()},
    "embed": "hook_embed",
    "final": "ln_final.hook_out",
}
UNROTATED = {"q": f"blocks.{LAYER}.attn.hook_q", "k": f"blocks.{LAYER}.attn.hook_k"}
"""The same for models that know nothing of rotation."""


def main() -> None:
    """Writes the file."""
    torch.set_num_threads(1)
    families = {family: _family(family) for family in FAMILIES}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in _origin().items()]
    lines.append('"families": {\n' + ",\n".join(_lines(families)) + "\n}")
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _origin() -> dict[str, Any]:
    return {
        "made": datetime.now(UTC).date().isoformat(),
        "command": "python -m tests.reference.make_transformer_lens",
        "versions": {
            "transformer-lens": version("transformer-lens"),
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "python": sys.version.split()[0],
        },
        "attention": "eager",
        "positions": list(POSITIONS),
        "columns": list(COLUMNS),
    }


def _lines(families: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A line for each kind of numbers, so that a difference of two versions of the file can be read."""
    for family, found in families.items():
        parts = [f"  {json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in found.items()]
        yield f" {json.dumps(family)}: {{\n" + ",\n".join(parts) + "\n }"


@torch.no_grad()
def _family(family: str) -> dict[str, Any]:
    model = tiny_model(family)
    weights = weights_hash(model)
    bridge = build_bridge_from_module(model, architecture=type(model).__name__, hf_config=model.config)
    return {
        "weights": weights,
        "clean": [_logits(bridge, prompt) for prompt in PROMPTS],
        **{f"without {layer}.{head}": [_logits(bridge, prompt, (layer, head)) for prompt in PROMPTS] for layer, head in HEADS},
        **_sites(bridge, rotary=family != "gpt2"),
    }


def _logits(bridge: TransformerBridge, prompt: list[int], without: tuple[int, int] | None = None) -> Any:
    """[pos, columns]: logits with one head's z set to zero."""

    def zero(z: Tensor, hook: HookPoint) -> Tensor:
        z = z.clone()
        z[:, :, without[1]] = 0
        return z

    hooks = [] if without is None else [(f"blocks.{without[0]}.attn.hook_z", zero)]
    return _numbers(of_logits(bridge.run_with_hooks(torch.tensor([prompt]), fwd_hooks=hooks)[0]))


def _sites(bridge: TransformerBridge, *, rotary: bool) -> dict[str, Any]:
    """Site -> name of the hook and the numbers kept of it."""
    _, cache = bridge.run_with_cache(torch.tensor([PROMPTS[0]]))
    hooks = HOOKS if rotary else {**HOOKS, **UNROTATED}
    return {site: {"hook": hook, "numbers": _numbers(of_site(site, cache[hook][0]))} for site, hook in hooks.items() if hook in cache}


def _numbers(x: Tensor) -> Any:
    """Nested lists with eight significant digits; None where attention was masked."""
    if x.dim():
        return [_numbers(row) for row in x]
    value = x.item()
    return None if value < -1e30 else float(f"{value:.8g}")


if __name__ == "__main__":
    main()
