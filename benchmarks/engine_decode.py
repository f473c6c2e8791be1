"""Writing under an edit, against transformers' plain `generate` that edits nothing.

32 tokens behind each prompt, the likeliest each time, with a cache of keys and values. Ours also gives each token's log-probability,
its margin and its text, one step after the other.

    python -m benchmarks.engine_decode [--shape gpt2|phi|toy] [--batch 8] [--rounds 9]
"""

import argparse

from torch import Tensor

from benchmarks import peers
from benchmarks.contest import SHAPES, Contest, Contestant, build, row
from benchmarks.steering import LENGTH, NEW_TOKENS, Steering, hooked, lens, ours, plain
from engine.hooks.batch import Batch
from engine.models.loading import LoadedModel

TARGET = 1.05
STRENGTH = 0.5


def by_hook(loaded: LoadedModel, batch: Batch, steering: Steering) -> Tensor:
    with hooked(loaded, steering, STRENGTH):
        return plain(loaded, batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    chosen = parser.parse_args()
    loaded, batch = build(chosen.shape, batch=chosen.batch, length=LENGTH)
    steering = Steering.of(loaded)
    contest = Contest(
        {
            "generate": Contestant(work=lambda: plain(loaded, batch)),
            "steered": Contestant(work=lambda: ours(loaded, batch, [[steering.edit(STRENGTH)]])),
            "generate with a hook": Contestant(work=lambda: by_hook(loaded, batch, steering)),
        }
    )
    if (bridge := peers.bridge(loaded.model)) is not None:
        contest.contestants["TransformerLens"] = Contestant(work=lambda: lens(bridge, batch, steering, STRENGTH))
    contest.agree(["generate with a hook", "steered", "TransformerLens"], within=0)
    contest.run(chosen.rounds)
    contest.show("generate")
    task = f"steered decode, {chosen.shape} {batch.size} x {batch.width} + {NEW_TOKENS}"
    for name in list(contest.contestants)[1:]:
        row(task, f"{name} / generate", contest.ratio(name, "generate"), TARGET if name == "steered" else None)


if __name__ == "__main__":
    main()
