"""A full head sweep: ours by replay, the plain loop over heads, and the least work that any exact method must do.

All contestants run in one process, in turn, on one thread; times are processor seconds, and ratios are of medians over rounds. The
limit is the floating-point work that an edited head really changes (its layer's MLP and everything above), at the speed that the plain
forward pass reaches. The loops' numbers are compared with ours before any time is printed.

    python benchmarks/engine_sweep.py [--shape gpt2|phi|toy] [--read last|all] [--rounds 3]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from engine.hooks.anatomy import find_anatomy
from engine.hooks.batch import Batch, forward
from engine.hooks.edit import Edit
from engine.hooks.replay import Variant
from engine.hooks.sites import Site
from engine.hooks.sweep import naive_sweep, sweep
from engine.models.loading import LoadedModel
from engine.spec import ModelRef

SHAPES = {
    "gpt2": ("gpt2", {"n_layer": 6, "n_embd": 384, "n_head": 12, "vocab_size": 4096}, 8, 64),
    "phi": (
        "phi",
        {"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12, "vocab_size": 4096},
        8,
        64,
    ),
    "toy": ("gpt2", {"n_layer": 3, "n_embd": 96, "n_head": 4, "vocab_size": 512}, 4, 16),
}
LOOP_HEADS = 2
"""Heads per layer that the loop is timed on; its time is proportional to their number."""


@dataclass(frozen=True)
class TargetLogit:
    """The logit of token 7, at the last position or as a mean over all."""

    positions: Tensor | None

    def __call__(self, logits: Tensor) -> Tensor:
        return logits[..., 7].mean(-1)


def build(shape: str) -> tuple[LoadedModel, Batch]:
    """A random model of that shape, and a batch."""
    kind, values, batch, length = SHAPES[shape]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **values, bos_token_id=0, eos_token_id=0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    ids = torch.randint(0, config.vocab_size, (batch, length)).tolist()
    ref = ModelRef(id=shape)
    loaded = LoadedModel(
        model=model,
        tokenizer=PreTrainedTokenizerFast.__new__(PreTrainedTokenizerFast),  # no text here
        device=model.device,
        fingerprint="0" * 64,
        anatomy=find_anatomy(model),
        ref=ref,
    )
    return loaded, Batch.of(ids)


def heads(loaded: LoadedModel, per_layer: int) -> list[Variant]:
    anatomy = loaded.anatomy
    return [
        [Edit(site=Site(layer=layer, name="z", head=head), op="zero")] for layer in range(anatomy.n_layers) for head in range(per_layer)
    ]


def usual_loop(model: PreTrainedModel, batch: Batch, sites: list[Variant], loaded: LoadedModel) -> None:
    """What people write: a hook, a forward pass with all defaults, the wanted logit."""
    for variant in sites:
        site = variant[0].site
        columns = loaded.anatomy.head_slice(site.head or 0)

        def zero(_module: nn.Module, args: tuple[Tensor, ...], columns: slice = columns) -> tuple[Tensor, ...]:
            z = args[0].clone()
            z[..., columns] = 0
            return (z, *args[1:])

        handle = loaded.anatomy.place(site).module.register_forward_pre_hook(zero)
        with torch.no_grad():
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        handle.remove()


def flops(loaded: LoadedModel, batch: Batch, kept: int) -> tuple[float, float]:
    """Multiply-adds of a plain forward pass, and of all heads' sweeps if nothing is done twice."""
    anatomy, size, width = loaded.anatomy, batch.size, batch.width
    d, tokens = anatomy.d_model, batch.size * batch.width
    weights = lambda module: sum(p.numel() for p in module.parameters() if p.dim() == 2)  # noqa: E731
    attention = tokens * weights(anatomy.blocks[0].attn) + size * width * width * anatomy.n_heads * anatomy.d_head * 2
    mlp = tokens * weights(anatomy.blocks[0].mlp)
    head = size * kept * d * loaded.model.config.vocab_size
    own = tokens * anatomy.d_head * d + (0 if anatomy.kind == "parallel" else mlp)
    needed = sum(own + (anatomy.n_layers - 1 - layer) * (attention + mlp) + head for layer in range(anatomy.n_layers)) * anatomy.n_heads
    return anatomy.n_layers * (attention + mlp) + head, needed


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2")
    parser.add_argument("--read", choices=("last", "all"), default="last")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=None, help="variants per forward; the engine's own rule when left out")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    loaded, batch = build(chosen.shape)
    readout = TargetLogit(torch.tensor([batch.width - 1]) if chosen.read == "last" else None)
    everything, some = heads(loaded, loaded.anatomy.n_heads), heads(loaded, LOOP_HEADS)
    scale = len(everything) / len(some)

    def ours(variants: list[Variant]) -> Tensor:
        values = torch.empty(len(variants), batch.size)
        for part in sweep(loaded, batch, variants, readout, variants_per_forward=chosen.at_once):
            values[list(part.variants)] = part.values
        return values

    off = (ours(some) - naive_sweep(loaded, batch, some, readout)).abs().max().item()
    assert off < 5e-6, f"replay and naive loop differ by {off}"
    plain_flops, needed_flops = flops(loaded, batch, batch.width if readout.positions is None else len(readout.positions))
    times: dict[str, list[float]] = {"plain": [], "replay": [], "lean loop": [], "usual loop": []}
    for _ in range(chosen.rounds):
        times["plain"].append(seconds(lambda: [forward(loaded.model, batch, readout.positions) for _ in range(4)]) / 4)
        times["replay"].append(seconds(lambda: ours(everything)))
        times["lean loop"].append(seconds(lambda: naive_sweep(loaded, batch, some, readout)) * scale)
        times["usual loop"].append(seconds(lambda: usual_loop(loaded.model, batch, some, loaded)) * scale)
    median = {name: statistics.median(values) for name, values in times.items()}
    limit = needed_flops / plain_flops * median["plain"]
    print(f"{chosen.shape}, {len(everything)} heads, batch {batch.size} x {batch.width}, read {chosen.read}; largest difference {off:.1e}")
    print(f"plain forward {median['plain'] * 1000:.1f} ms; limit {limit:.2f} s")
    for name in ("replay", "lean loop", "usual loop"):
        of_limit, of_loop = median[name] / limit, median[name] / median["lean loop"]
        print(f"{name:>10}: {median[name]:7.2f} s = {of_limit:.2f} of the limit = {of_loop:.2f} of the lean loop")


if __name__ == "__main__":
    main()
