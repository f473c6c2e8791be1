"""The model card of philab-micro, made from what was measured."""

from typing import Any

from engine.text.world import shipped_world

CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [interpretability, synthetic]
---
# philab-micro

A small causal language model in Phi architecture: {layers} layers, {heads} heads each, width {hidden}, {parameters:.2f} million
parameters, {size:.1f} MB (fp16; load it as fp32). It was trained from nothing on a corpus that philab generates, so that heads,
probes and steering can be tried on a laptop with nothing to download. It knows a closed world of {things} things and no other; do
not use it for anything but experiments.

## Data
`engine/text/corpus.py` makes short documents without end: facts of the closed world (`engine/resources/corpus/world.yaml`),
true-or-false questions, synonyms and antonyms, indirect objects, subject-verb agreement, sentiment, sums, questions on a context,
repeated random words, and tiny stories. No text by others is in it. Corpus fingerprint: `{corpus_sha256}`.

## Training
{commands}, then `--export`: {steps_done} steps of {batch} rows
of {length} tokens, {tokens_seen:,} tokens, torch {torch}, one CPU thread. Muon for the matrices of the blocks, AdamW for the rest.
Weighted training loss over the last 200 steps: {loss_last_200_steps:.3f} nats (answers count 3 times, random words a tenth).

## What it can do
Measured by `python -m scripts.micro_abilities`. *Choice*: the right answer has a larger logit than the wrong one, with the 95 %
Wilson interval. *First*: the right answer is the likeliest of all {vocab} tokens (where several answers would be right, as for verbs
and words of praise, it can only be low). *Bigram*: choice by the training frequency of the answer after the last word. *Most common*:
share of the most common answer. "Held out" items are in wordings, of pairs, or about names and nouns that training does not have in
such sentences. {overlap}

| ability | items | n | choice | first | bigram | most common |
|---|---|---|---|---|---|---|
{rows}

Rows of 20 random words, repeated once: {first:.2f} nats per word in the first copy, {second:.2f} in the second (300 rows, first word
of each left out).

## What it writes
The likeliest continuation of each beginning, nothing chosen by hand.

{samples}
## Limits
This is a first version. Where an interval above includes a baseline, the ability is not there. "True" means true in the closed world.
Statements about the real world are beyond it. The files `training.json`, `abilities.json` and
`overlap.json` hold all numbers of this card.
"""


def card(training: dict[str, Any], facts: dict[str, Any], overlap: dict[str, Any], size_bytes: int, parameters: int) -> str:
    """The model card, every number in it from `training`, `facts` and `overlap`."""
    plan, first, second = training["plan"], facts["repeats"]["first_copy_loss"], facts["repeats"]["second_copy_loss"]
    rows = "\n".join(_card_row(one) for one in facts["abilities"])
    samples = "\n".join(f"> **{prompt}**{text.removeprefix(prompt)}\n" for prompt, text in facts["samples"].items())
    return CARD.format(
        parameters=parameters / 1e6,
        size=size_bytes / 1e6,
        first=first,
        second=second,
        rows=rows,
        samples=samples,
        commands=_commands(training),
        overlap=_overlap_sentence(overlap),
        things=len(shipped_world().things),
        **{**plan, **training},
    )


def _commands(training: dict[str, Any]) -> str:
    """The commands that make these weights again."""
    stages, seed = training["stages"], training["plan"]["seed"]
    ends = [first for first, _ in stages[1:]]
    untils = [f" --until {end}" for end in ends] + [""]
    return ", then\n".join(
        f"`python -m scripts.train_micro --seed {seed} --threads 1 --steps {steps}{until}`"
        for (_, steps), until in zip(stages, untils, strict=True)
    )


def _overlap_sentence(overlap: dict[str, Any]) -> str:
    found = len(overlap["overlaps"]) or "none"
    return (
        f"Of their {overlap['held_out_runs']:,} runs of 8 words (the whole, where a prompt is shorter; the question that statements\n"
        f"share left out), {found} occur in the {overlap['documents']:,} documents that training drew from."
    )


def _card_row(one: dict[str, Any]) -> str:
    interval = f"{one['choice']:.1%} ({one['choice_low']:.1%} to {one['choice_high']:.1%})"
    where = "held out" if one["held_out"] else "as in training"
    return f"| {one['ability']} | {where} | {one['n']} | {interval} | {one['first']:.1%} | {one['bigram']:.1%} | {one['most_common']:.1%} |"
