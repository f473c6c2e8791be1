"""A full head sweep: ours by replay, the loops that people write, and the least work that any exact method must do.

Every head is set to zero in turn and a logit is read. The limit is the floating-point work that an edited head really changes (its
layer's MLP and everything above), at the speed that the plain forward pass reaches. Loops are timed on two heads per layer: their time
is proportional to the number of heads.

    python -m benchmarks.engine_sweep [--shape gpt2|phi|toy] [--read last|all] [--rounds 5]
"""

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.contest import SHAPES, Contest, Contestant, build, row
from engine.hooks.batch import Batch, forward
from engine.hooks.change import Change
from engine.hooks.replay import Variant
from engine.hooks.sites import Site
from engine.hooks.sweep import naive_sweep, sweep
from engine.models.loading import LoadedModel

LOOP_HEADS = 2
PLAIN = 4
"""Forward passes in one timing of the plain model."""
TARGETS = {"last": 0.9, "all": 1.15}
OF_LENS = 0.5
"""Of TransformerLens' loop at the last position. With all logits read, the limit itself is above that."""


@dataclass(frozen=True)
class TargetLogit:
    """The logit of token 7, at the last position or as a mean over all."""

    positions: Tensor | None

    def __call__(self, logits: Tensor) -> Tensor:
        return logits[..., 7].mean(-1)

    def of_all(self, logits: Tensor) -> Tensor:
        """The same from logits at all positions."""
        return self(logits if self.positions is None else logits[:, self.positions])


def heads(loaded: LoadedModel, per_layer: int) -> list[Variant]:
    layers = range(loaded.anatomy.n_layers)
    return [[Change(site=Site(layer=layer, name="z", head=head), op="zero")] for layer in layers for head in range(per_layer)]


def replay(loaded: LoadedModel, batch: Batch, variants: list[Variant], readout: TargetLogit) -> Tensor:
    values = torch.empty(len(variants), batch.size)
    for part in sweep(loaded, batch, variants, readout):
        values[list(part.variants)] = part.values
    return values


def usual_loop(loaded: LoadedModel, batch: Batch, variants: list[Variant], readout: TargetLogit) -> Tensor:
    """What people write: a hook, a forward pass with all defaults, the wanted logit."""
    return torch.stack([_usual(loaded, batch, variant[0].site, readout) for variant in variants])


def _usual(loaded: LoadedModel, batch: Batch, site: Site, readout: TargetLogit) -> Tensor:
    columns = loaded.anatomy.head_slice(site.head or 0)

    def zero(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = args[0].clone()
        z[..., columns] = 0
        return (z, *args[1:])

    handle = loaded.anatomy.place(site).module.register_forward_pre_hook(zero)
    with torch.no_grad():
        logits = loaded.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    handle.remove()
    return readout.of_all(logits)


def lens_loop(bridge: Any, batch: Batch, variants: list[Variant], readout: TargetLogit) -> Tensor:
    return torch.stack([_lens(bridge, batch, variant[0].site, readout) for variant in variants])


def _lens(bridge: Any, batch: Batch, site: Site, readout: TargetLogit) -> Tensor:
    def zero(z: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        z = z.clone()
        z[:, :, site.head] = 0
        return z

    with torch.no_grad():
        return readout.of_all(bridge.run_with_hooks(batch.input_ids, fwd_hooks=[(site.hook_name, zero)]))


def nnsight_loop(wrapped: Any, loaded: LoadedModel, batch: Batch, variants: list[Variant], readout: TargetLogit) -> Tensor:
    names = {module: name for name, module in loaded.model.named_modules()}
    values = []
    for variant in variants:
        site = variant[0].site
        projection = peers.part(wrapped, names[loaded.anatomy.place(site).module])
        columns = loaded.anatomy.head_slice(site.head or 0)
        keep = 0 if readout.positions is None else 1
        with torch.no_grad(), wrapped.trace(input_ids=batch.input_ids, use_cache=False, logits_to_keep=keep):
            z = projection.input.clone()
            z[..., columns] = 0
            projection.input = z
            logits = wrapped.output.logits.save()
        values.append(readout(logits))
    return torch.stack(values)


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


def contest_of(loaded: LoadedModel, batch: Batch, readout: TargetLogit) -> Contest:
    model, everything, some = loaded.model, heads(loaded, loaded.anatomy.n_heads), heads(loaded, LOOP_HEADS)
    part = len(everything) / len(some)
    contest = Contest(
        {
            "plain forward": Contestant(
                work=lambda: torch.stack([forward(model, batch, readout.positions) for _ in range(PLAIN)]), times=1 / PLAIN
            ),
            "replay": Contestant(work=lambda: replay(loaded, batch, everything, readout)),
            "lean loop": Contestant(work=lambda: naive_sweep(loaded, batch, some, readout), times=part),
            "usual loop": Contestant(work=lambda: usual_loop(loaded, batch, some, readout), times=part),
        }
    )
    if (bridge := peers.bridge(model)) is not None:
        contest.contestants["TransformerLens loop"] = Contestant(work=lambda: lens_loop(bridge, batch, some, readout), times=part)
    if (wrapped := peers.envoy(model)) is not None:
        contest.contestants["nnsight loop"] = Contestant(work=lambda: nnsight_loop(wrapped, loaded, batch, some, readout), times=part)
    return contest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2")
    parser.add_argument("--read", choices=("last", "all"), default="last")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    loaded, batch = build(chosen.shape)
    readout = TargetLogit(torch.tensor([batch.width - 1]) if chosen.read == "last" else None)
    contest = contest_of(loaded, batch, readout)
    some = heads(loaded, LOOP_HEADS)
    check = Contest({**contest.contestants, "replay": Contestant(work=lambda: replay(loaded, batch, some, readout))})
    check.agree(["lean loop", "usual loop", "replay", "TransformerLens loop", "nnsight loop"], within=5e-6)
    contest.run(chosen.rounds)
    plain, needed = flops(loaded, batch, batch.width if readout.positions is None else len(readout.positions))
    contest.show("plain forward", times=needed / plain)
    task = f"head sweep, {chosen.shape} {batch.size} x {batch.width}, read {chosen.read}"
    row(task, "replay / limit", contest.ratio("replay", "plain forward", times=needed / plain), TARGETS[chosen.read])
    for other in ("lean loop", "usual loop", "TransformerLens loop", "nnsight loop"):
        if other in contest.contestants:
            target = OF_LENS if other == "TransformerLens loop" and chosen.read == "last" else None
            row(task, f"replay / {other}", contest.ratio("replay", other), target)


if __name__ == "__main__":
    main()
