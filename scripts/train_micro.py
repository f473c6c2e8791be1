"""Train `philab-micro` on the generated corpus: `python -m scripts.train_micro --steps 4000 --threads 1`.

The same seed, steps, threads and kind of processor give the same weights. A checkpoint is written every `--save-every` steps;
started again with the same `--work` folder, training goes on from it. `--export` writes the model folder from the last checkpoint.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

from engine.text.corpus import corpus_sha256, documents
from engine.text.corpus_patterns import all_words
from engine.text.items import Item
from engine.text.world import shipped_world

END = "<|endoftext|>"
EXPORT = Path("engine/resources/models/philab-micro")
PROMPT_WEIGHTS = {"repeated": 0.1, "true_false": 0.4}
"""Weight in the loss of what nobody can foresee: random words, and the values of false statements. Other prompts count 1."""
TARGET_WEIGHTS = {"repeated": 1.0}
"""Weight of what is asked for. Other targets count 3."""


Stages = list[list[int]]
"""First step, and the `--steps` that the rates were planned for from there on; more than one where that was changed on the way."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that the weights depend on besides the code and the machine."""

    seed: int = 0
    steps: int = 4000
    batch: int = 40
    length: int = 96
    vocab: int = 2048
    hidden: int = 160
    layers: int = 6
    heads: int = 5
    matrix_rate: float = 0.02
    other_rate: float = 0.003
    warm_up: int = 100
    decay_share: float = 0.25


def trained_tokenizer(plan: Plan) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every word of the corpus is one token when a space stands before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=plan.vocab, special_tokens=[END], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    world = shipped_world()
    words = [form for word in all_words() for form in (word, world.plural(word))]
    texts = [item.text for item in documents(f"tokenizer:{plan.seed}", 40_000)]
    tokenizer.train_from_iterator([*texts, *(" " + " ".join(words) for _ in range(200))], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, unk_token=END)


def new_model(plan: Plan) -> PhiForCausalLM:
    """An untrained model in Phi architecture, the same for the same seed."""
    torch.manual_seed(plan.seed)
    config = PhiConfig(
        vocab_size=plan.vocab,
        hidden_size=plan.hidden,
        intermediate_size=4 * plan.hidden,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return PhiForCausalLM(config)


@dataclass(frozen=True)
class Batch:
    """Token ids and the weight of each in the loss, both [batch, pos]."""

    ids: torch.Tensor
    weights: torch.Tensor


def batch_of(plan: Plan, tokenizer: Tokenizer, step: int) -> Batch:
    """The batch of a step; it depends on seed and step only, so that training can go on anywhere."""
    size = plan.length + 1
    rows: list[tuple[list[int], list[float]]] = []
    stream = documents(f"{plan.seed}:{step}")
    ids: list[int] = []
    weights: list[float] = []
    while len(rows) < plan.batch:
        for each_ids, each_weights in _encoded(tokenizer, list(islice(stream, plan.batch * 4))):
            ids, weights = ids + each_ids, weights + each_weights
            if len(ids) >= size:
                rows.append((ids[:size], weights[:size]))
                ids, weights = [], []
    return Batch(ids=torch.tensor([row[0] for row in rows[: plan.batch]]), weights=torch.tensor([row[1] for row in rows[: plan.batch]]))


def _encoded(tokenizer: Tokenizer, items: list[Item]) -> Iterator[tuple[list[int], list[float]]]:
    prompts = tokenizer.encode_batch([item.prompt for item in items])
    answers = tokenizer.encode_batch([item.target + item.tail for item in items])
    for item, prompt, answer in zip(items, prompts, answers, strict=True):
        before, asked = PROMPT_WEIGHTS.get(item.family, 1.0), TARGET_WEIGHTS.get(item.family, 3.0)
        yield [*prompt.ids, *answer.ids, 0], [before] * len(prompt.ids) + [asked] * len(answer.ids) + [0.5]


def loss_of(model: PhiForCausalLM, batch: Batch) -> torch.Tensor:
    """Weighted next-token loss in nats."""
    logits = model(input_ids=batch.ids[:, :-1], use_cache=False).logits.float()
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none")
    weights = batch.weights[:, 1:].flatten()
    return (each * weights).sum() / weights.sum()


class Optimizers:
    """Muon for the matrices of the blocks, AdamW for everything else, and one schedule for both."""

    def __init__(self, model: PhiForCausalLM, plan: Plan) -> None:
        self.plan = plan
        inner = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
        known = {id(p) for p in inner}
        rest = [p for p in model.parameters() if id(p) not in known]
        self.muon = torch.optim.Muon(inner, lr=plan.matrix_rate, weight_decay=0.01, momentum=0.95, adjust_lr_fn="original")
        self.adam = torch.optim.AdamW(rest, lr=plan.other_rate, betas=(0.9, 0.97), weight_decay=0.0)

    def step(self, step: int) -> None:
        """One update at the rate of this step: warm-up, constant, then straight down to a twentieth."""
        factor = _rate_factor(step, self.plan)
        for optimizer, rate in ((self.muon, self.plan.matrix_rate), (self.adam, self.plan.other_rate)):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """State of both."""
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of both."""
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def _rate_factor(step: int, plan: Plan) -> float:
    left = (plan.steps - step) / max(1.0, plan.decay_share * plan.steps)
    return min(1.0, (step + 1) / plan.warm_up, max(0.05, left))


def train(plan: Plan, work: Path, *, save_every: int, until: int | None = None, minutes: float | None = None) -> PhiForCausalLM:
    """Train up to `plan.steps`, or stop earlier; goes on from the checkpoint in `work` if there is one, and leaves one there."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = _kept_tokenizer(plan, work)
    model = new_model(plan).train()
    optimizers = Optimizers(model, plan)
    step, losses, stages = _resumed(work, model, optimizers)
    if not stages or stages[-1][1] != plan.steps:
        stages.append([step, plan.steps])
    began, first, last = time.monotonic(), step, min(plan.steps, until or plan.steps)
    while step < last and (minutes is None or time.monotonic() - began < 60 * minutes):
        loss = loss_of(model, batch_of(plan, tokenizer, step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(step)
        losses.append(loss.item())
        step += 1
        if step % 20 == 0:
            pace = (time.monotonic() - began) / (step - first)
            print(f"step {step}/{plan.steps} loss {sum(losses[-20:]) / 20:.4f} {pace:.3f} s/step", flush=True)
        if step % save_every == 0:
            _save(work, plan, stages, losses, model, optimizers)
    _save(work, plan, stages, losses, model, optimizers)
    return model


def _kept_tokenizer(plan: Plan, work: Path) -> Tokenizer:
    file = work / "tokenizer.json"
    if not file.exists():
        trained_tokenizer(plan).save_pretrained(work)
    return Tokenizer.from_file(str(file))


def _save(work: Path, plan: Plan, stages: Stages, losses: list[float], model: PhiForCausalLM, optimizers: Optimizers) -> None:
    state = {"plan": asdict(plan), "stages": stages, "step": len(losses), "losses": losses}
    state |= {"model": model.state_dict(), "optimizers": optimizers.state_dict()}
    torch.save(state, work / "checkpoint.new")
    (work / "checkpoint.new").replace(work / "checkpoint.pt")


def _resumed(work: Path, model: PhiForCausalLM, optimizers: Optimizers) -> tuple[int, list[float], Stages]:
    file = work / "checkpoint.pt"
    if not file.exists():
        return 0, [], []
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state["model"])
    optimizers.load_state_dict(state["optimizers"])
    return state["step"], state["losses"], state.get("stages", [[0, state["plan"]["steps"]]])


def export(work: Path, folder: Path) -> None:
    """Write the model folder (fp16 safetensors, tokenizer, config) from the last checkpoint in `work`."""
    state = torch.load(work / "checkpoint.pt", weights_only=True)
    plan = Plan(**state["plan"])
    model = new_model(plan)
    model.load_state_dict(state["model"])
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    PreTrainedTokenizerFast.from_pretrained(work).save_pretrained(folder)
    losses = state["losses"][-200:]
    facts = {
        "plan": state["plan"],
        "stages": state["stages"],
        "steps_done": state["step"],
        "loss_last_200_steps": sum(losses) / len(losses),
    }
    facts |= {"tokens_seen": state["step"] * plan.batch * plan.length, "corpus_sha256": corpus_sha256(), "torch": torch.__version__}
    (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {folder}: {sum(f.stat().st_size for f in folder.iterdir()) / 1e6:.1f} MB after {state['step']} steps")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 when it went well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("results/train_micro"), help="folder of tokenizer and checkpoint")
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--until", type=int, default=None, help="stop after this step; start again to go on")
    parser.add_argument("--minutes", type=float, default=None, help="stop after this time; start again to go on")
    parser.add_argument("--export", type=Path, nargs="?", const=EXPORT, default=None, help="only write the model folder")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    torch.use_deterministic_algorithms(True)
    if chosen.export is not None:
        export(chosen.work, chosen.export)
        return 0
    plan = Plan(seed=chosen.seed, steps=chosen.steps)
    train(plan, chosen.work, save_every=chosen.save_every, until=chosen.until, minutes=chosen.minutes)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
