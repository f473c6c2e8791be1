"""What all benchmarks share: random models of a few shapes, contestants that run in turn, and rows of the table of results.

One process, one thread, processor seconds. Each round runs every contestant once; a ratio is the median over rounds of the ratio
within the round, so that a busy machine slows both sides of it. Answers are compared before anything is timed.
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from engine.hooks.batch import Batch
from engine.hooks.discovery import find_anatomy
from engine.models.loading import LoadedModel
from engine.spec import ModelRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A random model, and the batch that runs through it."""

    kind: str
    config: Mapping[str, Any]
    batch: int
    length: int


PHI = {"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12, "vocab_size": 4096}
SHAPES = {
    "gpt2": Shape(kind="gpt2", config={"n_layer": 6, "n_embd": 384, "n_head": 12, "vocab_size": 4096}, batch=8, length=64),
    "phi": Shape(kind="phi", config=PHI, batch=8, length=64),
    "toy": Shape(kind="gpt2", config={"n_layer": 3, "n_embd": 96, "n_head": 4, "vocab_size": 512}, batch=4, length=16),
}


def build(name: str, *, batch: int | None = None, length: int | None = None) -> tuple[LoadedModel, Batch]:
    """A random model of that shape, and a batch of random tokens."""
    shape = SHAPES[name]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = AutoConfig.for_model(shape.kind, **shape.config, bos_token_id=0, eos_token_id=0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    ids = torch.randint(1, config.vocab_size, (batch or shape.batch, length or shape.length)).tolist()
    loaded = LoadedModel(
        model=model,
        tokenizer=_tokenizer(config.vocab_size),
        device=model.device,
        fingerprint="0" * 64,
        anatomy=find_anatomy(model),
        ref=ModelRef(id=name),
    )
    return loaded, Batch.of(ids)


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One word per id."""
    from tokenizers import Tokenizer, models

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({f"w{token}": token for token in range(vocabulary)})))


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """Somebody's way of doing the task.

    Attributes:
        work: does it, and gives the answer: a tensor, or several of one shape.
        times: how much larger the whole task is than what `work` does.
    """

    work: Callable[[], Tensor | Sequence[Tensor]]
    times: float = 1


def _one(answer: Tensor | Sequence[Tensor]) -> Tensor:
    return answer if isinstance(answer, Tensor) else torch.stack(list(answer))


@dataclass(slots=True)
class Contest:
    """Contestants by name, with processor seconds per round."""

    contestants: dict[str, Contestant]
    seconds: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def agree(self, names: Sequence[str], *, within: float) -> None:
        """Runs these once, and stops if an answer differs from the first one's."""
        answers = {name: _one(self.contestants[name].work()) for name in names if name in self.contestants}
        reference = next(iter(answers.values()))
        for name, answer in answers.items():
            off = (answer - reference).abs().max().item()
            print(f"{name}: largest difference {off:.1e}")
            if not off <= within:
                sys.exit(f"{name} gives another answer, so its time means nothing")

    def run(self, rounds: int) -> None:
        """Times everybody, in turn."""
        for _ in range(rounds):
            for name, contestant in self.contestants.items():
                started = time.process_time()
                contestant.work()
                self.seconds.setdefault(name, []).append((time.process_time() - started) * contestant.times)

    def median(self, name: str) -> float:
        """Processor seconds."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, other: str, *, times: float = 1) -> float:
        """How long one takes in units of `times` the other."""
        return statistics.median(one / (times * two) for one, two in zip(self.seconds[name], self.seconds[other], strict=True))

    def show(self, unit: str, *, times: float = 1) -> None:
        """Everybody's time, and its ratio to somebody's."""
        for name in self.contestants:
            print(f"{name:>28}: {self.median(name):8.3f} s = {self.ratio(name, unit, times=times):.2f}")


def row(task: str, measure: str, ratio: float, target: float | None = None) -> None:
    """Prints a row of the table of results."""
    verdict = "" if target is None else f"≤ {target} {'PASS' if ratio <= target else 'FAIL'}"
    print(f"| {task} | {measure} | {ratio:.2f} | {verdict} |")
