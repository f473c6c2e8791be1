"""Named places in a forward pass, in the vocabulary of TransformerLens and SAELens. Imports without torch."""

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SiteName = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "neurons"]

HOOK_NAMES: dict[SiteName, str] = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "neurons": "mlp.hook_post",
}
"""Site name -> the part of the TransformerLens hook name behind `blocks.<layer>.`"""

PER_HEAD: frozenset[SiteName] = frozenset({"z"})
"""Sites whose last axis is cut into attention heads."""

_HOOK_PATTERN = re.compile(r"blocks\.(?P<layer>\d+)\.(?P<hook>[a-z_.]+)")


class Site(BaseModel):
    """A named place in the forward pass; `head` narrows a per-head site to one query head.

    Written `blocks.3.hook_resid_post`, and for a head `blocks.3.attn.hook_z` with `head=2`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: Annotated[int, Field(ge=0, description="Index of the block, counted from 0.")]
    name: Annotated[SiteName, Field(description="Place within the block.")]
    head: Annotated[int | None, Field(ge=0, description="Query head, for per-head sites only.")] = None

    @model_validator(mode="after")
    def _head_only_where_heads_are(self) -> Self:
        if self.head is not None and self.name not in PER_HEAD:
            raise ValueError(f"site '{self.name}' has no heads, so head={self.head} cannot be asked for; leave head out or use 'z'")
        return self

    @property
    def hook_name(self) -> str:
        """The TransformerLens hook name, for example `blocks.3.attn.hook_z`; the head is not part of it."""
        return f"blocks.{self.layer}.{HOOK_NAMES[self.name]}"

    @property
    def label(self) -> str:
        """Short name for tables and charts: `L3H2` for a head, `L3 mlp_out` otherwise."""
        return f"L{self.layer}H{self.head}" if self.head is not None else f"L{self.layer} {self.name}"

    @classmethod
    def parse(cls, hook_name: str, head: int | None = None) -> Self:
        """The site that a TransformerLens hook name means.

        Raises:
            ValueError: the name is not one that this engine knows.
        """
        match = _HOOK_PATTERN.fullmatch(hook_name)
        names: dict[str, SiteName] = {hook: name for name, hook in HOOK_NAMES.items()}
        if match is None or match["hook"] not in names:
            known = ", ".join(HOOK_NAMES.values())
            raise ValueError(f"'{hook_name}' is not a site; expected 'blocks.<layer>.' followed by one of {known}")
        return cls(layer=int(match["layer"]), name=names[match["hook"]], head=head)
