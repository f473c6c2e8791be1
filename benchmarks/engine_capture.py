"""Reading the residual stream in front of and behind every layer, against the plain forward pass that reads nothing.

All contestants compute the logits at all positions and keep no cache. `output_hidden_states` gives the stream behind the last layer
only after the final norm, so it is not compared there.

    python -m benchmarks.engine_capture [--batch 32] [--rounds 15]
"""

import argparse
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.contest import Contest, Contestant, build, row
from engine.hooks.batch import Batch, forward
from engine.hooks.capture import captured
from engine.hooks.sites import Site
from engine.models.loading import LoadedModel

TARGET = 1.05


def ours(loaded: LoadedModel, batch: Batch) -> list[Tensor]:
    sites = [Site(layer=layer, name="resid_pre") for layer in range(loaded.anatomy.n_layers)]
    sites.append(Site(layer=loaded.anatomy.n_layers - 1, name="resid_post"))
    with captured(loaded, sites) as got:
        forward(loaded.model, batch)
    return [got[site] for site in sites]


def by_hooks(loaded: LoadedModel, batch: Batch) -> list[Tensor]:
    """What people write without a library."""
    got = list[Tensor]()

    def before(_module: nn.Module, args: tuple[Any, ...]) -> None:
        got.append(args[0])

    def after(_module: nn.Module, _args: Any, output: Tensor) -> None:
        got.append(output)

    layers = [block.layer for block in loaded.anatomy.blocks]
    handles = [layer.register_forward_pre_hook(before) for layer in layers] + [layers[-1].register_forward_hook(after)]
    forward(loaded.model, batch)
    for handle in handles:
        handle.remove()
    return got


def hidden_states(loaded: LoadedModel, batch: Batch) -> list[Tensor]:
    with torch.no_grad():
        output = loaded.model(input_ids=batch.input_ids, use_cache=False, output_hidden_states=True)
    return list(output.hidden_states[:-1])


def by_nnsight(wrapped: Any, loaded: LoadedModel, batch: Batch) -> list[Tensor]:
    names = {module: name for name, module in loaded.model.named_modules()}
    layers = [peers.part(wrapped, names[block.layer]) for block in loaded.anatomy.blocks]
    got = []
    with torch.no_grad(), wrapped.trace(input_ids=batch.input_ids, use_cache=False):
        for layer in layers:
            got.append(layer.input.save())
        got.append(layers[-1].output.save())
        wrapped.output.logits.save()
    return got


def by_lens(bridge: Any, batch: Batch, n_layers: int) -> list[Tensor]:
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(n_layers)] + [f"blocks.{n_layers - 1}.hook_resid_post"]
    with torch.no_grad():
        _, cache = bridge.run_with_cache(batch.input_ids, names_filter=names)
    return [cache[name] for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    chosen = parser.parse_args()
    loaded, batch = build("gpt2", batch=chosen.batch)
    contest = Contest(
        {
            "plain forward": Contestant(work=lambda: forward(loaded.model, batch)),
            "capture": Contestant(work=lambda: ours(loaded, batch)),
            "hooks by hand": Contestant(work=lambda: by_hooks(loaded, batch)),
            "output_hidden_states": Contestant(work=lambda: hidden_states(loaded, batch)),
        }
    )
    if (bridge := peers.bridge(loaded.model)) is not None:
        contest.contestants["TransformerLens"] = Contestant(work=lambda: by_lens(bridge, batch, loaded.anatomy.n_layers))
    if (wrapped := peers.envoy(loaded.model)) is not None:
        contest.contestants["nnsight"] = Contestant(work=lambda: by_nnsight(wrapped, loaded, batch))
    contest.agree(["hooks by hand", "capture", "TransformerLens", "nnsight"], within=5e-6)
    contest.run(chosen.rounds)
    contest.show("plain forward")
    task = f"capture of all residuals, gpt2 {batch.size} x {batch.width}"
    for name in list(contest.contestants)[1:]:
        row(task, f"{name} / plain forward", contest.ratio(name, "plain forward"), TARGET if name == "capture" else None)


if __name__ == "__main__":
    main()
