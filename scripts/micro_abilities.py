"""Measure what `philab-micro` can do on items held out from its training, beside two baselines: `python -m scripts.micro_abilities`.

Writes `abilities.json` and the model card `README.md` into the model folder; `scripts.micro_overlap` comes before it.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from engine.text.corpus import documents, items
from engine.text.corpus_patterns import all_words
from engine.text.items import Item, Rng
from scripts.micro_card import card

FOLDER = Path("engine/resources/models/philab-micro")
ABILITIES = {
    "true or false": ("true_false", 600, True),
    "true or false, as in training": ("true_false", 600, False),
    "kind, colour, size or place of a thing": ("word_question", 600, True),
    "indirect object": ("indirect_object", 600, True),
    "subject-verb agreement": ("agreement", 600, True),
    "sentiment": ("sentiment", 600, True),
    "context, number answer": ("context_number", 600, True),
    "context, letter answer": ("context_letter", 600, True),
    "context, word answer": ("context_word", 600, True),
    "synonyms and antonyms (trained pairs)": ("word_pair", 600, False),
    "sums and differences (trained pairs)": ("arithmetic", 300, False),
}
"""Ability -> family, most items, and whether they are held out."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Shares of items answered rightly: `choice` target over distractor, `first` target as the likeliest next token of all."""

    ability: str
    held_out: bool
    n: int
    choice: float
    choice_low: float
    choice_high: float
    first: float
    bigram: float
    most_common: float


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % Wilson interval of a share."""
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def some_items(family: str, most: int, held_out: bool) -> list[Item]:
    """Up to `most` different items that ask for a word; fewer where the family has fewer."""
    return [item for item in items(family, "abilities", most, held_out=held_out, or_fewer=True) if item.distractor]


def last_logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> Iterator[torch.Tensor]:
    """Logits after each prompt, in batches of prompts of equal length, so that there is no padding."""
    encoded = [torch.tensor(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    found: dict[int, torch.Tensor] = {}
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    while order:
        length = len(encoded[order[0]])
        batch = [i for i in order[:64] if len(encoded[i]) == length]
        order = order[len(batch) :]
        with torch.no_grad():
            logits = model(torch.stack([encoded[i] for i in batch])).logits[:, -1]
        found |= dict(zip(batch, logits, strict=True))
    yield from (found[i] for i in range(len(prompts)))


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, bigrams: Counter[tuple[str, str]], ability: str, most: int | None = None
) -> Measured:
    """One ability on its items."""
    family, usual, held_out = ABILITIES[ability]
    asked = some_items(family, most or usual, held_out)
    right = [tokenizer(item.target)["input_ids"][0] for item in asked]
    wrong = [tokenizer(item.distractor)["input_ids"][0] for item in asked]
    logits = torch.stack(list(last_logits(model, tokenizer, [item.prompt for item in asked])))
    rows = torch.arange(len(asked))
    choice = float((logits[rows, right] > logits[rows, wrong]).double().mean())
    low, high = wilson(choice, len(asked))
    return Measured(
        ability=ability,
        held_out=held_out,
        n=len(asked),
        choice=choice,
        choice_low=low,
        choice_high=high,
        first=float((logits.argmax(-1) == torch.tensor(right)).double().mean()),
        bigram=_bigram_share(asked, bigrams),
        most_common=Counter(item.target for item in asked).most_common(1)[0][1] / len(asked),
    )


def counted_bigrams(count: int = 60_000) -> Counter[tuple[str, str]]:
    """How often one word follows another in training documents."""
    counts: Counter[tuple[str, str]] = Counter()
    for item in documents("bigrams", count):
        counts.update(pairwise(item.text.split()))
    return counts


def _bigram_share(asked: list[Item], bigrams: Counter[tuple[str, str]]) -> float:
    """Share right when the word that more often follows the last word is chosen; ties count half."""
    score = 0.0
    for item in asked:
        last = item.prompt.split()[-1]
        right, wrong = (sum(bigrams[last, word.strip() + end] for end in ("", ".")) for word in (item.target, item.distractor))
        score += 0.5 if right == wrong else float(right > wrong)
    return score / len(asked)


def repeat_losses(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: int = 300, length: int = 20) -> tuple[float, float]:
    """Mean loss in nats over the first and over the second copy of random words (without the first word of each)."""
    rng = Rng("abilities:repeats")
    texts = [" ".join(rng.sample(all_words(), length) * 2) for _ in range(rows)]
    firsts, seconds = [], []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            each = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        firsts.append(each[: length - 1].mean())
        seconds.append(each[length:].mean())
    return float(torch.stack(firsts).mean()), float(torch.stack(seconds).mean())


def continued(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, tokens: int = 48) -> str:
    """The prompt and what the model writes after it, likeliest token each time, up to the end of the document."""
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    with torch.no_grad():
        for _ in range(tokens):
            following = model(ids).logits[:, -1:].argmax(-1)
            if following.item() == tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, following], dim=1)
    return str(tokenizer.decode(ids[0])).strip()


BEGINNINGS = (
    "One day Alice went to the",
    "A robin is a",
    "When Tom and Anna went to the shop, Anna gave a book to",
    "Tom was sad. In the forest Tom found",
)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; 0 when it went well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--most", type=int, default=None, help="at most this many items per ability")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="only print")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    model = AutoModelForCausalLM.from_pretrained(chosen.folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(chosen.folder)
    facts = all_facts(model, tokenizer, most=chosen.most)
    print(json.dumps(facts, indent=1))
    if not chosen.dry:
        training, overlap = (json.loads((chosen.folder / name).read_text(encoding="utf-8")) for name in ("training.json", "overlap.json"))
        size = (chosen.folder / "model.safetensors").stat().st_size
        (chosen.folder / "abilities.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        (chosen.folder / "README.md").write_text(card(training, facts, overlap, size, model.num_parameters()), encoding="utf-8")
    return 0


def all_facts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, most: int | None = None) -> dict[str, Any]:
    """Everything that is measured, ready for JSON."""
    bigrams = counted_bigrams()
    first, second = repeat_losses(model, tokenizer)
    return {
        "abilities": [asdict(measure(model, tokenizer, bigrams, ability, most)) for ability in ABILITIES],
        "repeats": {"first_copy_loss": first, "second_copy_loss": second, "rows": 300, "length": 20},
        "samples": {beginning: continued(model, tokenizer, beginning) for beginning in BEGINNINGS},
    }


if __name__ == "__main__":
    raise SystemExit(main())
