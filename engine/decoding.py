"""How a text is written on: which token comes next, and when it ends; as data. Imports without torch."""

from typing import Annotated, Literal

from pydantic import Field

from engine.values import Frozen

StopReason = Literal["eos", "stop", "length", "cancelled"]
"""Why a text ended: the model said so, a stop that was asked for, as many tokens as were asked for, or somebody cancelled."""


class Greedy(Frozen):
    """The likeliest token each time."""

    how: Literal["greedy"] = "greedy"


LIKELIEST = Greedy()
"""The choice that is made unless another is asked for."""


class Sample(Frozen):
    """A token drawn from the model's distribution.

    A draw depends on the seed, the prompt and the number of the step, and on nothing else: the same prompt under several edits, in
    another batch or alone gets the same draws, so what differs is due to the edits. A prompt that is given twice gets two sets of draws.
    """

    how: Literal["sample"] = "sample"
    temperature: Annotated[float, Field(gt=0, le=100, description="Logits are divided by it; below 1 likely tokens become likelier.")] = 1.0
    top_k: Annotated[int | None, Field(ge=1, le=2**31 - 1, description="Only so many of the likeliest tokens; all when left out.")] = None
    top_p: Annotated[float | None, Field(gt=0, le=1, description="Only the likeliest tokens that have this probability together.")] = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="Seed of the draws.")] = 0


Sampling = Annotated[Greedy | Sample, Field(discriminator="how")]
"""How the next token is chosen."""


class Stop(Frozen):
    """When a text ends before it has as many tokens as were asked for. The token that ends it is part of it."""

    eos: Annotated[bool, Field(description="Whether it ends at the model's own end of text.")] = True
    ids: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(max_length=1000, description="Token ids that end it.")] = ()
    texts: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...],
        Field(max_length=100, description="Texts that end it, wherever they are in what was written."),
    ] = ()


AT_THE_END = Stop()
"""A text ends at the model's own end of text, or when it is as long as was asked for."""
