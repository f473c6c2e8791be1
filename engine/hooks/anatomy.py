"""Where each site is in a model: its blocks, and the tensor that a site means. `engine.hooks.discovery` finds them."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.errors import SpecError, UnknownAnatomy
from engine.hooks.place import Place
from engine.hooks.sites import GROUPED, INSIDE_ATTENTION, PAIRS, Site, SiteName

BlockKind = Literal["serial", "parallel", "sandwich"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The parts of one layer; None where this model has no such part."""

    layer: nn.Module
    attn: nn.Module | None
    attn_out_proj: nn.Module | None
    attn_end: nn.Module | None
    mlp: nn.Module | None
    mlp_out_proj: nn.Module | None
    mlp_end: nn.Module | None
    middle: nn.Module | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """Where the sites of a model are.

    Attributes:
        whole: the model.
        embed: the token embeddings.
        final: the norm behind the last layer; None where the engine finds none.
        blocks: the layers from bottom to top.
        kind: `serial` (the MLP reads what attention wrote), `parallel` (both read the layer's input), or `sandwich`
            (serial, with a norm behind attention and behind the MLP).
        n_heads: query heads per layer; 0 where heads cannot be told apart.
        n_kv_heads: heads of keys and values per layer; several query heads may share one.
        d_head: width of one head's slice of z.
        d_model: width of the residual stream.
        layer_gives_tuple: items of the tuple that a layer answers with; 0 for a plain tensor.
        attn_gives_tuple: the same for attention.
        overwritten: places whose tensor the model's own code changes in place later; who keeps it needs a copy.
        exchangeable: whether a layer can be redone from a given attention or MLP output alone.
    """

    whole: PreTrainedModel
    embed: nn.Module
    final: nn.Module | None
    blocks: tuple[Block, ...]
    kind: BlockKind
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_model: int
    layer_gives_tuple: int
    attn_gives_tuple: int
    overwritten: frozenset[Place]
    exchangeable: bool

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return len(self.blocks)

    @property
    def d_mlp(self) -> int:
        """Width of the MLP's inner layer; four times the stream where it cannot be told."""
        out = self.blocks[0].mlp_out_proj
        return in_width(out) if out is not None else 4 * self.d_model

    def check(self, site: Site, *, model: str = "the model") -> None:
        """Refuses a site outside the model.

        Raises:
            SpecError: no such layer or head.
            UnknownAnatomy: the model has no such place.
        """
        if site.layer is not None and site.layer >= self.n_layers:
            raise SpecError(f"layer {site.layer} does not exist: {model} has layers 0 to {self.n_layers - 1}.")
        self.place(site)
        heads, what = (self.n_kv_heads, "key-value groups") if site.name in GROUPED else (self.n_heads, "heads")
        if site.head is not None and site.head >= heads:
            raise SpecError(f"head {site.head} does not exist: {model} has {what} 0 to {heads - 1} in each layer.")
        width = self.width(site)
        if site.unit is not None and width is not None and site.unit >= width:
            raise SpecError(f"unit {site.unit} does not exist: site '{site.name}' of {model} has units 0 to {width - 1}.")

    def place(self, site: Site) -> Place:
        """The tensor that a site means; for a head or a unit the whole of which `part` takes it.

        Raises:
            UnknownAnatomy: this model has no such place.
        """
        match site.name:
            case "embed":
                return Place(self.embed, "out")
            case "final":
                return Place(self._found(self.final, site), "out")
            case "logits":
                return Place(self.whole, "logits")
        block = self.blocks[site.depth]
        match site.name:
            case "resid_pre":
                return Place(block.layer, "in")
            case "resid_post":
                return Place(block.layer, "out")
            case "resid_mid":
                return Place(self._found(block.middle, site), "in")
            case "attn_out":
                return Place(self._found(block.attn_end, site), "out")
            case "mlp_out":
                return Place(self._found(block.mlp_end, site), "out")
            case "neurons":
                return Place(self._found(block.mlp_out_proj, site), "in")
            case "z":
                return Place(self._found(block.attn_out_proj if self.n_heads else None, site), "in")
            case "head_out":
                return Place(self._found(block.attn_out_proj if self.n_heads else None, site), "heads")
            case "q" | "k" | "v" | "scores" | "pattern":
                return Place(self._found(block.attn if self.n_heads else None, site), site.name)

    def width(self, site: Site) -> int | None:
        """Columns along the last axis of a site, or of one head of it; None where that is known only when it runs."""
        match site.name:
            case "z":
                return self.d_head if site.head is not None else self.n_heads * self.d_head
            case "neurons":
                return self.d_mlp
            case "logits":
                return self.whole.config.get_text_config().vocab_size
            case "q" | "k" | "v" | "scores" | "pattern":
                return None
            case _:
                return self.d_model

    def part(self, x: Tensor, site: Site) -> Tensor:
        """The part of a place's tensor that a site's head and unit mean; a view."""
        if site.head is not None:
            x = self._one_head(x, site.name, site.head)
        if site.unit is not None and site.unit >= x.shape[-1]:
            raise SpecError(f"unit {site.unit} does not exist: site '{site.hook_name}' has units 0 to {x.shape[-1] - 1}.")
        return x if site.unit is None else x[..., site.unit : site.unit + 1]

    def _one_head(self, x: Tensor, name: SiteName, head: int) -> Tensor:
        if name == "z":
            return x[..., self.head_slice(head)]
        return x[:, head] if name in PAIRS else x[:, :, head]

    def head_slice(self, head: int) -> slice:
        """The columns of z that belong to a query head."""
        return slice(head * self.d_head, (head + 1) * self.d_head)

    def _found(self, module: nn.Module | None, site: Site) -> nn.Module:
        if module is not None:
            return module
        beside = site.name == "resid_mid" and self.kind == "parallel"
        reason = "its attention and MLP work side by side" if beside else "the engine did not find it"
        if site.name in INSIDE_ATTENTION or site.name in ("z", "head_out"):
            reason = "its heads cannot be told apart"
        layer = type(self.blocks[0].layer).__name__
        raise UnknownAnatomy(f"{layer} has no site '{site.hook_name}': {reason}.", next_step="Choose another site.")


def in_width(projection: nn.Module) -> int:
    """Width of what goes in. Conv1D keeps its weight as [in, out], everything else says `in_features`."""
    width = getattr(projection, "in_features", None)
    return int(width) if width is not None else int(projection.weight.shape[0])  # type: ignore[union-attr, index]
