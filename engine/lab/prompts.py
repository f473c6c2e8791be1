"""What people give as prompts, as token ids: one text, several, or the ids themselves."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from engine.errors import SpecError
from engine.models.loading import LoadedModel

Prompts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | Tensor
"""One text or several, one list of token ids or several, or a tensor of them."""


def token_rows(loaded: LoadedModel, prompts: Prompts) -> list[list[int]]:
    """Token ids, one list per prompt. Texts are tokenised as the tokenizer does it by itself: nothing is put in front.

    Raises:
        SpecError: there are none, an id is outside the vocabulary, or a prompt is longer than the model's positions.
    """
    rows = [_ids(loaded, row) for row in _rows(prompts)]
    if not rows:
        raise SpecError("there are no prompts.", next_step="Give a text, or a list of texts.")
    for row in rows:
        _refuse_unfit(loaded, row)
    return rows


def as_texts(loaded: LoadedModel, prompts: Prompts) -> list[str]:
    """The prompts as people read them: as they were given, and ids decoded."""
    return [row if isinstance(row, str) else str(loaded.tokenizer.decode(row)) for row in _rows(prompts)]


def pieces(loaded: LoadedModel, ids: Sequence[int]) -> list[str]:
    """The text of each token."""
    return [str(loaded.tokenizer.decode([id], clean_up_tokenization_spaces=False)) for id in ids]


def _rows(prompts: Any) -> list[Any]:
    if isinstance(prompts, Tensor):
        prompts = prompts.tolist()
    if isinstance(prompts, str):
        return [prompts]
    rows = list(prompts)
    return [rows] if rows and isinstance(rows[0], int) else rows


def _ids(loaded: LoadedModel, row: Any) -> list[int]:
    if isinstance(row, str):
        return list(loaded.tokenizer(row, verbose=False)["input_ids"])  # type: ignore[arg-type]
    ids = row.tolist() if isinstance(row, Tensor) else list(row)
    if any(not isinstance(id, int) or isinstance(id, bool) for id in ids):
        raise SpecError(f"a prompt is {str(ids)[:60]}; expected a text, or a list of token ids.")
    return ids


def _refuse_unfit(loaded: LoadedModel, ids: Sequence[int]) -> None:
    if not ids:
        raise SpecError("a prompt has no tokens.", next_step="Give at least one token.")
    known = int(loaded.model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    outside = [id for id in ids if not 0 <= id < known]
    if outside:
        raise SpecError(f"token id {outside[0]} does not exist: '{loaded.ref.id}' has ids 0 to {known - 1}.")
    if loaded.max_length is not None and len(ids) > loaded.max_length:
        raise SpecError(
            f"a prompt has {len(ids)} tokens, but '{loaded.ref.id}' has {loaded.max_length} positions.", next_step="Shorten the prompt."
        )
