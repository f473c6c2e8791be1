"""Self-test: does the engine tell the truth about this model, on this machine?"""

from typing import Annotated, Literal

from pydantic import Field

from engine.spec.base import DatasetRef, Limits, Rows, Spec


class SelfTestSpec(Spec):
    """Check the engine on a model: each check compares two ways to the same numbers, and states how far apart they may be."""

    kind: Literal["selftest"] = "selftest"
    dataset: Annotated[DatasetRef, Field(description="Prompts to check with. No number depends on what they say.")] = DatasetRef(
        name="micro_stories", rows=Rows(start=0, stop=3)
    )
    tokens: Annotated[
        int,
        Field(
            ge=4,
            le=4096,
            description="Tokens of each prompt that are used. To check a sliding window, take more than the window is wide.",
        ),
    ] = 24
    limits: Annotated[
        Limits,
        Field(description="Caps on the work: 'records', 'layers' and 'heads' (of each layer; 1 when left out) say how much is checked."),
    ] = Limits()
