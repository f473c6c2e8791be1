"""Four strengths of a steering vector along the batch, against four runs.

python -m benchmarks.engine_strengths [--shape gpt2|phi|toy] [--batch 4] [--rounds 9]
"""

import argparse

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.contest import SHAPES, Contest, Contestant, build, row
from benchmarks.steering import LENGTH, NEW_TOKENS, Steering, hooked, lens, ours, plain
from engine.hooks.batch import Batch
from engine.models.loading import LoadedModel

TARGET = 0.45
STRENGTHS = (0.25, 0.5, 1.0, 2.0)


def by_hooks(loaded: LoadedModel, batch: Batch, steering: Steering) -> Tensor:
    found = []
    for strength in STRENGTHS:
        with hooked(loaded, steering, strength):
            found.append(plain(loaded, batch))
    return torch.cat(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    chosen = parser.parse_args()
    loaded, batch = build(chosen.shape, batch=chosen.batch, length=LENGTH)
    steering = Steering.of(loaded)
    variants = [[steering.edit(strength)] for strength in STRENGTHS]
    contest = Contest(
        {
            "four runs": Contestant(work=lambda: torch.cat([ours(loaded, batch, [variant]) for variant in variants])),
            "along the batch": Contestant(work=lambda: ours(loaded, batch, variants)),
            "four hooked generates": Contestant(work=lambda: by_hooks(loaded, batch, steering)),
        }
    )
    if (bridge := peers.bridge(loaded.model)) is not None:
        contest.contestants["TransformerLens, four runs"] = Contestant(
            work=lambda: torch.cat([lens(bridge, batch, steering, strength) for strength in STRENGTHS])
        )
    contest.agree(list(contest.contestants), within=0)
    contest.run(chosen.rounds)
    contest.show("four runs")
    task = f"{len(STRENGTHS)} strengths, {chosen.shape} {batch.size} x {batch.width} + {NEW_TOKENS}"
    for other in list(contest.contestants):
        if other != "along the batch":
            row(task, f"along the batch / {other}", contest.ratio("along the batch", other), TARGET if other == "four runs" else None)


if __name__ == "__main__":
    main()
