"""Named places in a forward pass, in the vocabulary of TransformerLens and SAELens. Imports without torch."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SiteName = Literal[
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    "z",
    "head_out",
    "neurons",
    "q",
    "k",
    "v",
    "scores",
    "pattern",
    "embed",
    "final",
    "logits",
]

HOOK_NAMES: dict[SiteName, str] = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "head_out": "attn.hook_result",
    "neurons": "mlp.hook_post",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "scores": "attn.hook_attn_scores",
    "pattern": "attn.hook_pattern",
    "embed": "hook_embed",
    "final": "ln_final.hook_normalized",
    "logits": "unembed.hook_out",
}
"""Site name -> its TransformerLens hook name, without the `blocks.<layer>.` that sites within a layer have in front."""

ALIASES: dict[str, SiteName] = {"attn.hook_rot_q": "q", "attn.hook_rot_k": "k"}
"""Other hook names that mean the same place here: queries and keys are seen as attention is given them, so rotated."""

GLOBAL: frozenset[SiteName] = frozenset({"embed", "final", "logits"})
"""Sites that a model has once, outside its layers."""
PER_HEAD: frozenset[SiteName] = frozenset({"z", "head_out", "q", "k", "v", "scores", "pattern"})
"""Sites that are cut into heads: query heads, or the key-value groups for `k` and `v`."""
GROUPED: frozenset[SiteName] = frozenset({"k", "v"})
"""Sites with one head per key-value group, which several query heads share."""
BY_HEAD: frozenset[SiteName] = frozenset({"head_out", "q", "k", "v"})
"""Sites whose tensor has an axis of heads; without a head they have one vector for each."""
INSIDE_ATTENTION: frozenset[SiteName] = frozenset({"q", "k", "v", "scores", "pattern"})
"""Sites within the attention function itself."""
PAIRS: frozenset[SiteName] = frozenset({"scores", "pattern"})
"""Sites with a number for each pair of a query and a key position."""

_HOOK_PATTERN = re.compile(r"(?:blocks\.(?P<layer>\d+)\.)?(?P<hook>[a-z_.]+)")


class Site(BaseModel):
    """A named place in the forward pass; `head` narrows a per-head site to one head, `unit` any site to one column.

    Written `blocks.3.hook_resid_post`, and for a head `blocks.3.attn.hook_z` with `head=2`. Sites outside the layers have none:
    `hook_embed`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: Annotated[
        int | None, Field(ge=0, lt=2**31, description="Index of the block, counted from 0; none for embed, final and logits.")
    ] = None
    name: Annotated[SiteName, Field(description="Place within the block.")]
    head: Annotated[
        int | None, Field(ge=0, lt=2**31, description="Query head, or key-value group for k and v; for per-head sites only.")
    ] = None
    unit: Annotated[
        int | None,
        Field(ge=0, lt=2**31, description="One column along the last axis, for example a neuron.", exclude_if=lambda value: value is None),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _from_hook_name(cls, value: Any) -> Any:
        return cls.parse(value).model_dump() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _possible(self) -> "Site":
        if (self.layer is None) != (self.name in GLOBAL):
            where = "exists once and has no layer; leave layer out" if self.name in GLOBAL else "is in a layer; say which"
            raise ValueError(f"site '{self.name}' {where} (layer={self.layer})")
        if self.head is not None and self.name not in PER_HEAD:
            raise ValueError(f"site '{self.name}' has no heads, so head={self.head} cannot be asked for; leave head out or use 'z'")
        if self.unit is not None and self.name in PAIRS:
            raise ValueError(f"site '{self.name}' has pairs of positions and no units; leave unit={self.unit} out")
        if self.unit is not None and self.name in BY_HEAD and self.head is None:
            raise ValueError(f"unit={self.unit} of site '{self.name}' is a column of one head; say which head")
        return self

    @property
    def depth(self) -> int:
        """The layer, for sites that must have one."""
        assert self.layer is not None, f"{self.name} has no layer"
        return self.layer

    @property
    def hook_name(self) -> str:
        """The TransformerLens hook name, for example `blocks.3.attn.hook_z`; head and unit are not part of it."""
        hook = HOOK_NAMES[self.name]
        return hook if self.layer is None else f"blocks.{self.layer}.{hook}"

    @property
    def label(self) -> str:
        """Short name for tables and charts: `L3H2` for a head of z, `L3H2 q`, `L3 mlp_out`, `L3 neurons[17]`, `final`."""
        place = "" if self.layer is None else f"L{self.layer}"
        head = "" if self.head is None else f"H{self.head}"
        name = "" if self.name == "z" and self.head is not None else self.name
        unit = "" if self.unit is None else f"[{self.unit}]"
        return " ".join(part for part in (place + head, name) if part) + unit

    @classmethod
    def parse(cls, hook_name: str, head: int | None = None, unit: int | None = None) -> "Site":
        """The site that a TransformerLens hook name means.

        Raises:
            ValueError: the name is not one that this engine knows.
        """
        match = _HOOK_PATTERN.fullmatch(hook_name)
        names: dict[str, SiteName] = {**{hook: name for name, hook in HOOK_NAMES.items()}, **ALIASES}
        name = names.get(match["hook"]) if match else None
        if match is None or name is None or (match["layer"] is None) != (name in GLOBAL):
            known = ", ".join(hook if site in GLOBAL else f"blocks.<layer>.{hook}" for site, hook in HOOK_NAMES.items())
            raise ValueError(f"'{hook_name}' is not a site; expected one of {known}")
        return cls(layer=None if match["layer"] is None else int(match["layer"]), name=name, head=head, unit=unit)
