"""Rows of a dataset as token ids, cut into prompt, target and distractor as the metric needs them."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from engine.errors import DatasetError
from engine.models.loading import LoadedModel
from engine.spec.ablation import Metric
from engine.text.datasets import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One row, tokenised.

    Attributes:
        id: id of the row.
        tokens: what the model is given.
        scored_from: index of the first token that the metric asks to be predicted; it is read off the position before.
        target: first token of the target, for metrics at the last prompt token.
        distractor: first token of the distractor, likewise.
    """

    id: str
    tokens: tuple[int, ...]
    scored_from: int
    target: int = -1
    distractor: int = -1


def prompts_of(rows: Sequence[Row], loaded: LoadedModel, *, metric: Metric, max_length: int) -> list[Prompt]:
    """All rows as the metric needs them, in their order.

    Raises:
        DatasetError: a row lacks what the metric needs, is too long, or two rows share an id; the text names the row.
    """
    _refuse_repeated_ids(rows)
    prompts = [_prompt(row, loaded.tokenizer, metric) for row in rows]
    for prompt in prompts:
        _refuse_too_long(prompt, max_length, loaded.max_length)
    return prompts


def text_prompts(rows: Sequence[Row], loaded: LoadedModel, *, max_length: int) -> list[Prompt]:
    """All rows as plain text (prompt and target joined), whatever metric is measured.

    Raises:
        DatasetError: a row is empty or too long.
    """
    return prompts_of(rows, loaded, metric="loss", max_length=max_length)


def text_of(row: Row) -> str:
    """The row's text; for a row with a prompt, the prompt and what follows it."""
    return row.text if row.text is not None else (row.prompt or "") + (row.target or "")


def _prompt(row: Row, tokenizer: PreTrainedTokenizerBase, metric: Metric) -> Prompt:
    match metric:
        case "loss":
            return _whole(row, tokenizer)
        case "target_loss":
            return _with_target(row, tokenizer)
        case "logit_diff" | "accuracy":
            return _with_choice(row, tokenizer, metric)


def _whole(row: Row, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    tokens = _tokens(tokenizer, text_of(row))
    if len(tokens) < 2:
        raise DatasetError(f"row '{row.id}' has {len(tokens)} token(s); a loss needs at least 2.", next_step="Leave the row out.")
    return Prompt(id=row.id, tokens=tokens, scored_from=1)


def _with_target(row: Row, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    prompt = _needed(row, "prompt", "target_loss")
    start, tokens = _continued(row, tokenizer, prompt, _needed(row, "target", "target_loss"))
    return Prompt(id=row.id, tokens=tokens, scored_from=start)


def _with_choice(row: Row, tokenizer: PreTrainedTokenizerBase, metric: Metric) -> Prompt:
    prompt = _needed(row, "prompt", metric)
    start, target = _continued(row, tokenizer, prompt, _needed(row, "target", metric))
    _, distractor = _continued(row, tokenizer, prompt, _needed(row, "distractor", metric))
    if target[start] == distractor[start]:
        raise DatasetError(
            f"row '{row.id}': target '{row.target}' and distractor '{row.distractor}' begin with the same token, "
            f"so '{metric}' cannot tell them apart.",
            next_step="Choose others, or metric 'target_loss'.",
        )
    return Prompt(id=row.id, tokens=target[:start], scored_from=start, target=target[start], distractor=distractor[start])


def _needed(row: Row, name: str, metric: Metric) -> str:
    value = getattr(row, name)
    if not value:
        raise DatasetError(
            f"row '{row.id}' has no '{name}', which metric '{metric}' needs.", next_step="Choose metric 'loss', or another dataset."
        )
    return value


def _continued(row: Row, tokenizer: PreTrainedTokenizerBase, prompt: str, more: str) -> tuple[int, tuple[int, ...]]:
    """How many tokens the prompt has, and the tokens of the prompt with its continuation."""
    before, tokens = _tokens(tokenizer, prompt), _tokens(tokenizer, prompt + more)
    if not before or tokens[: len(before)] != before or len(tokens) == len(before):
        raise DatasetError(
            f"row '{row.id}': '{more}' does not continue the prompt in tokens of its own; the tokenizer joins it to the prompt's end.",
            next_step="Move the space from the prompt's end to the front of what follows.",
        )
    return len(before), tokens


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, verbose=False)["input_ids"])


def _refuse_too_long(prompt: Prompt, max_length: int, positions: int | None) -> None:
    length = len(prompt.tokens)
    if length > max_length:
        raise DatasetError(
            f"row '{prompt.id}' has {length} tokens, more than limits.max_length = {max_length}; prompts are never cut.",
            next_step="Raise the limit or shorten the row.",
        )
    if positions is not None and length > positions:
        raise DatasetError(f"row '{prompt.id}' has {length} tokens, but the model has {positions} positions.", next_step="Shorten the row.")


def _refuse_repeated_ids(rows: Sequence[Row]) -> None:
    seen = set[str]()
    for row in rows:
        if row.id in seen:
            raise DatasetError(f"two rows have the id '{row.id}'.", next_step="Give each row its own id.")
        seen.add(row.id)
