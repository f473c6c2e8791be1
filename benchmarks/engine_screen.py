"""The first-order screen of all heads, in units of the plain forward pass.

The estimates are compared with the same formula written out by hand: the gradient at z, times what setting a head to zero takes away.
How well they agree with the exact sweep is printed too; on a random model that says little about real ones.

    python -m benchmarks.engine_screen [--shape gpt2|phi|toy] [--rounds 9]
"""

import argparse

import torch
from torch import Tensor, nn

from benchmarks.contest import SHAPES, Contest, Contestant, build, row
from benchmarks.engine_sweep import TargetLogit, heads, replay
from engine.hooks.batch import Batch, forward
from engine.hooks.screen import first_order
from engine.models.loading import LoadedModel

TARGET = 4


def by_hand(loaded: LoadedModel, batch: Batch, readout: TargetLogit) -> Tensor:
    """[heads, batch]: one forward and one backward pass with torch's own hooks."""
    zs = list[Tensor]()

    def keep(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        args[0].retain_grad()
        zs.append(args[0])

    def begin(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        return output.detach().requires_grad_()

    projections = [block.attn_out_proj for block in loaded.anatomy.blocks]
    handles = [projection.register_forward_pre_hook(keep) for projection in projections if projection is not None]
    handles.append(loaded.model.get_input_embeddings().register_forward_hook(begin))
    clean = readout(forward(loaded.model, batch, readout.positions, grad=True))
    clean.sum().backward()
    for handle in handles:
        handle.remove()
    products = [z.detach() * z.grad for z in zs]
    each = torch.stack([product.unflatten(-1, (-1, loaded.anatomy.d_head)).sum((1, 3)) for product in products])
    return clean.detach() - each.transpose(1, 2).flatten(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2")
    parser.add_argument("--rounds", type=int, default=9)
    chosen = parser.parse_args()
    loaded, batch = build(chosen.shape)
    readout = TargetLogit(torch.tensor([batch.width - 1]))
    everything = heads(loaded, loaded.anatomy.n_heads)
    contest = Contest(
        {
            "plain forward": Contestant(work=lambda: forward(loaded.model, batch, readout.positions)),
            "screen": Contestant(work=lambda: first_order(loaded, batch, everything, readout).values),
            "by hand": Contestant(work=lambda: by_hand(loaded, batch, readout)),
        }
    )
    contest.agree(["by hand", "screen"], within=1e-6)
    estimates, exact = first_order(loaded, batch, everything, readout), replay(loaded, batch, everything, readout)
    effects = torch.stack([(estimates.values - estimates.clean).mean(-1), (exact - estimates.clean).mean(-1)])
    print(f"correlation with the exact effects of all heads: {torch.corrcoef(effects)[0, 1]:.3f}")
    contest.run(chosen.rounds)
    contest.show("plain forward")
    task = f"first-order screen of {len(everything)} heads, {chosen.shape} {batch.size} x {batch.width}"
    row(task, "screen / plain forward", contest.ratio("screen", "plain forward"), TARGET)
    row(task, "by hand / plain forward", contest.ratio("by hand", "plain forward"))


if __name__ == "__main__":
    main()
