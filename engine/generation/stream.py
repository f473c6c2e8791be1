"""Tokens out of prompts under edits, one step at a time."""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from engine.decoding import AT_THE_END, LIKELIEST, Sampling, Stop, StopReason
from engine.errors import ModelError, SpecError
from engine.generation.asked import eos_ids, refuse_unfit
from engine.generation.decoder import Decoder, Read
from engine.generation.draws import chosen, draw_keys
from engine.generation.rows import Rows, Ties, changes_of
from engine.generation.words import Words
from engine.hooks.batch import Batch
from engine.hooks.bind import Reference
from engine.hooks.edit import Edit
from engine.hooks.sites import Site
from engine.models.loading import LoadedModel


class Token(NamedTuple):
    """One token that was written.

    Attributes:
        prompt: index of the prompt that it follows.
        variant: index of the variant under which it was written; 0 where there are none.
        id: token id.
        logprob: natural logarithm of the probability that the edited model gave it, before temperature, `top_k` and `top_p`.
        margin: difference of the two largest logits; where it is tiny, rounding may decide which token is the likeliest.
        text: text that can be shown now; empty while a character is incomplete, and for special tokens.
        stop: why the text ends with this token; None while it goes on.
    """

    prompt: int
    variant: int
    id: int
    logprob: float
    margin: float
    text: str
    stop: StopReason | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One more token in every text that has not ended.

    Attributes:
        number: how many steps there were before.
        tokens: all prompts under the first variant, then all under the second, and so on; without those that had ended.
        captures: site -> tensor whose rows belong to `tokens`; of the prompts, padded on the left, in the first step, and afterwards of
            the token that was written in the step before. Keys of scores and pattern are all tokens so far, or those that a layer
            with a sliding window still has.
    """

    number: int
    tokens: tuple[Token, ...]
    captures: Mapping[Site, Tensor]


def never() -> bool:
    """Nobody cancels."""
    return False


def generate(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    edits: Sequence[Edit] = (),
    variants: Sequence[Sequence[Edit]] | None = None,
    sampling: Sampling = LIKELIEST,
    stop: Stop = AT_THE_END,
    cancelled: Callable[[], bool] = never,
    use_cache: bool = True,
    capture: Sequence[Site] = (),
    tensors: Mapping[str, Tensor] | None = None,
    reference: Reference | None = None,
) -> Generator[Step, None, None]:
    """The steps of writing on behind prompts. Between two of them the model is free for others, and nothing is hooked into it.

    Of the model's own generation settings only the end of text counts; penalties, forced tokens and the like are not applied.

    Args:
        loaded: the model.
        prompts: token ids, one sequence per prompt, of any lengths.
        max_new_tokens: tokens behind each prompt, at most.
        edits: what is changed in every variant.
        variants: further edits; every prompt is written on under each variant, all in one batch. An empty variant has no further ones.
        sampling: how the next token is chosen.
        stop: when a text ends earlier.
        cancelled: asked before every step; there are no more when it is true.
        use_cache: keep keys and values; otherwise everything is read again for every token, with the same outcome.
        capture: sites to read in each step.
        tensors: tensors by hash, for values that are a `TensorRef`.
        reference: what `mean` and `resample` put in place.

    Raises:
        SpecError: a prompt or an edit does not fit the model.
        UnknownAnatomy: the model has no such site.
        ModelError: in a step: the model has no cache, or its logits are no numbers.
    """
    prompts = [list(prompt) for prompt in prompts]
    refuse_unfit(loaded, prompts, new_tokens=max_new_tokens)
    if variants is not None and not len(variants):
        raise SpecError("there are no variants.", next_step="Give at least one, which may be empty, or leave them out.")
    whole = [[*edits, *variant] for variant in variants or ((),)]
    rows = Rows(n_prompts=len(prompts), n_variants=len(whole))
    for site in capture:
        loaded.anatomy.check(site)
    changes = changes_of(whole, rows, Ties(loaded=loaded, tensors=tensors, reference=reference))
    batch = Batch.of(prompts, side="left", device=loaded.device).repeated(rows.n_variants)
    decoder = Decoder(loaded, batch, changes, capture=capture, use_cache=use_cache)
    keys = draw_keys(prompts) * rows.n_variants
    texts = [_Text(Words(loaded.tokenizer, prompts[rows.prompt(row)]), keys[row]) for row in range(rows.size)]
    ends = _Ends(eos_ids(loaded) if stop.eos else frozenset(), frozenset(stop.ids), stop.texts, max_new_tokens)
    return _steps(decoder, rows, texts, ends, sampling, cancelled)


class _Ends(NamedTuple):
    """When a text ends."""

    eos: frozenset[int]
    ids: frozenset[int]
    texts: tuple[str, ...]
    length: int

    def reason(self, token: int, text: str, written: int) -> StopReason | None:
        """Why a text ends with its newest token, if it does."""
        if token in self.eos:
            return "eos"
        if token in self.ids or any(end in text for end in self.texts):
            return "stop"
        return "length" if written == self.length else None


class _Text:
    """What is known of a text while it is written."""

    def __init__(self, words: Words, key: str) -> None:
        self.words, self.key = words, key
        self.ended = False

    def add(self, token: int, ends: _Ends, written: int) -> tuple[str, StopReason | None]:
        """The text that another token adds, and why it ends with it, if it does."""
        new = self.words.add(token)
        stop = ends.reason(token, self.words.text, written)
        self.ended = stop is not None
        return (new + self.words.end() if self.ended else new), stop


def _steps(
    decoder: Decoder, rows: Rows, texts: Sequence[_Text], ends: _Ends, sampling: Sampling, cancelled: Callable[[], bool]
) -> Generator[Step, None, None]:
    for number in range(ends.length):
        if cancelled():
            return
        read = decoder.read()
        tokens = chosen(read.logits, sampling, [texts[row].key for row in decoder.rows], step=number)
        yield _step(number, read, tokens, decoder, rows, texts, ends)
        ended = [at for at, row in enumerate(decoder.rows) if texts[row].ended]
        if len(ended) == len(decoder.rows):
            return
        decoder.add(tokens)
        decoder.drop(ended)


def _step(number: int, read: Read, tokens: Tensor, decoder: Decoder, rows: Rows, texts: Sequence[_Text], ends: _Ends) -> Step:
    """The newest token of each text that had not ended; afterwards it is known which end with it."""
    places = [at for at, row in enumerate(decoder.rows) if not texts[row].ended]
    ids, logprobs, margins = tokens.tolist(), *_measured(read.logits, tokens)
    found = list[Token]()
    for at in places:
        row = decoder.rows[at]
        if math.isnan(logprobs[at]):
            raise ModelError(
                f"the logits behind prompt {rows.prompt(row)} under variant {rows.variant(row)} are no numbers after {number} new tokens.",
                next_step="Choose a smaller strength, or a dtype with a larger range.",
            )
        text, stop = texts[row].add(ids[at], ends, number + 1)
        found.append(Token(rows.prompt(row), rows.variant(row), ids[at], logprobs[at], margins[at], text, stop))
    captures = read.captures if len(places) == len(ids) else {site: x[places] for site, x in read.captures.items()}
    return Step(number=number, tokens=tuple(found), captures=captures)


def _measured(logits: Float[Tensor, "rows vocab"], tokens: Int[Tensor, " rows"]) -> tuple[list[float], list[float]]:
    """Log-probability of each row's token, and difference of the two largest logits."""
    logprobs = logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
    best = logits.topk(2, dim=-1).values
    return logprobs.tolist(), (best[:, 0] - best[:, 1]).tolist()
