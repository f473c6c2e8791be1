"""Check that nothing held out was trained on: `python -m scripts.micro_overlap` goes through every document of the training.

No eight words in a row of a held-out prompt may occur in training; of a shorter prompt, not the whole. The question that every statement
has behind it does not count. Writes `overlap.json` into the model folder.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from engine.spec.base import DatasetRef
from engine.text.corpus import documents
from engine.text.corpus_facts import QUESTION
from engine.text.datasets import load_dataset
from scripts.micro_abilities import ABILITIES, FOLDER, some_items

LONGEST = 8
DOCUMENTS_PER_STEP = 480
"""More than a step of training takes from its stream."""
HELD_OUT_SETS = ("epistemology_true_false", "indirect_objects", "agreement")

Gram = tuple[str, ...]


def grams(words: list[str], n: int) -> Iterator[Gram]:
    """All runs of `n` words."""
    return zip(*(words[i:] for i in range(n)), strict=False)


def held_out_grams() -> dict[int, set[Gram]]:
    """The runs of words that training may not have, by their length."""
    found: dict[int, set[Gram]] = {}
    for prompt in chain(_ability_prompts(), _dataset_prompts()):
        words = _words(prompt)
        n = min(LONGEST, len(words))
        found.setdefault(n, set()).update(grams(words, n))
    return found


def _ability_prompts() -> Iterator[str]:
    asked = {(family, most) for family, most, held_out in ABILITIES.values() if held_out}
    return (item.prompt for family, most in sorted(asked) for item in some_items(family, most, True))


def _dataset_prompts() -> Iterator[str]:
    return (str(row.prompt) for name in HELD_OUT_SETS for row in load_dataset(DatasetRef(name=name)).rows)


def _words(text: str) -> list[str]:
    return text.replace(QUESTION, "").split()


def overlaps(texts: Iterable[str], held_out: dict[int, set[Gram]]) -> set[Gram]:
    """Which of the held-out runs occur in the texts."""
    found: set[Gram] = set()
    for text in texts:
        words = _words(text)
        for n, forbidden in held_out.items():
            found.update(gram for gram in grams(words, n) if gram in forbidden)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Check and write; 1 where something overlaps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    folder: Path = parser.parse_args(arguments).folder
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    held_out, seed = held_out_grams(), training["plan"]["seed"]
    streams = (islice(documents(f"{seed}:{step}"), DOCUMENTS_PER_STEP) for step in range(training["steps_done"]))
    found = overlaps((item.text for item in chain.from_iterable(streams)), held_out)
    facts = {
        "documents": training["steps_done"] * DOCUMENTS_PER_STEP,
        "held_out_runs": sum(map(len, held_out.values())),
        "overlaps": sorted(" ".join(gram) for gram in found),
    }
    (folder / "overlap.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(facts, indent=1))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
