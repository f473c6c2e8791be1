"""What is refused before anything is generated, and when texts end."""

from collections.abc import Sequence

from engine.errors import SpecError
from engine.models.loading import LoadedModel


def refuse_unfit(loaded: LoadedModel, prompts: Sequence[Sequence[int]], *, new_tokens: int) -> None:
    """Refuses prompts that the model cannot read, or not write on for so many tokens.

    Raises:
        SpecError: there are no prompts, or one is empty, has an unknown token, or needs more positions than the model has.
    """
    if new_tokens < 1:
        raise SpecError(f"{new_tokens} new tokens were asked for; expected at least 1.")
    if not prompts:
        raise SpecError("there are no prompts.", next_step="Give at least one.")
    known = int(loaded.model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    for number, prompt in enumerate(prompts):
        _refuse_tokens(prompt, number, known, loaded)
    _refuse_long(loaded, max(map(len, prompts)), new_tokens)


def _refuse_tokens(prompt: Sequence[int], number: int, known: int, loaded: LoadedModel) -> None:
    if not len(prompt):
        raise SpecError(f"prompt {number} has no tokens.", next_step="Give at least one token, such as the beginning of a text.")
    outside = [token for token in prompt if not 0 <= token < known]
    if outside:
        raise SpecError(f"token id {outside[0]} in prompt {number} does not exist: '{loaded.ref.id}' has ids 0 to {known - 1}.")


def _refuse_long(loaded: LoadedModel, longest: int, new_tokens: int) -> None:
    needed = longest + new_tokens - 1  # the last token is written, but never read
    if loaded.max_length is not None and needed > loaded.max_length:
        raise SpecError(
            f"a prompt of {longest} tokens and {new_tokens} new ones need {needed} positions, but '{loaded.ref.id}' has "
            f"{loaded.max_length}.",
            next_step=f"Ask for at most {loaded.max_length - longest + 1} new tokens."
            if longest <= loaded.max_length
            else "Shorten the prompt.",
        )


def eos_ids(loaded: LoadedModel) -> frozenset[int]:
    """Token ids at which the model ends a text: those of its generation settings, or the tokenizer's where these name none."""
    named = getattr(loaded.model.generation_config, "eos_token_id", None)
    if named is None:
        named = loaded.tokenizer.eos_token_id
    return frozenset(named if isinstance(named, list | tuple) else () if named is None else (named,))  # type: ignore[arg-type]
