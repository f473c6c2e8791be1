"""Where each site is in a model, found by looking at its structure. The only file that knows module names.

Layers and attentions are the classes that transformers declares in `_can_record_outputs`; projections are found by a short
list of names; everything else (parallel or serial block, norms behind attention and MLP, where the middle of the block is)
is read off one small forward pass through the first layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.errors import SpecError, UnknownAnatomy
from engine.hooks.observation import Parts, Seen, observe
from engine.hooks.place import Place
from engine.hooks.sites import GROUPED, INSIDE_ATTENTION, PAIRS, Site

ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")
OUT_PROJECTION_NAMES = ("o_proj", "c_proj", "dense", "out_proj", "wo")
MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
FINAL_NORM_NAMES = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "norm_f")
MLP_OUT_NAMES = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "out_proj")

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
        layer_gives_tuple: whether a layer answers with a tuple.
        attn_gives_tuple: whether attention answers with a tuple.
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
    layer_gives_tuple: bool
    attn_gives_tuple: bool
    exchangeable: bool

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return len(self.blocks)

    @property
    def d_mlp(self) -> int:
        """Width of the MLP's inner layer; four times the stream where it cannot be told."""
        out = self.blocks[0].mlp_out_proj
        return _in_width(out) if out is not None else 4 * self.d_model

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
            at = (..., self.head_slice(site.head)) if site.name == "z" else (slice(None), site.head)
            x = x[at] if site.name == "z" or site.name in PAIRS else x[:, :, site.head]
        return x if site.unit is None else x[..., site.unit : site.unit + 1]

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


def find_anatomy(model: PreTrainedModel) -> Anatomy:
    """The anatomy of a causal language model; runs its first layer once on three tokens.

    Raises:
        UnknownAnatomy: no list of layers was found.
    """
    layers = _layers(model)
    attentions = [_attention(model, layer) for layer in layers]
    mlps = [_named(layer, MLP_NAMES) for layer in layers]
    bottom = Parts(layers[0], attentions[0], _named(attentions[0], OUT_PROJECTION_NAMES), mlps[0])
    seen = observe(model, bottom, layers[1:])
    n_heads, d_head = _heads(model, attentions)
    return Anatomy(
        whole=model,
        embed=model.get_input_embeddings(),
        final=_final_norm(model, layers),
        blocks=tuple(_block(*parts, seen) for parts in zip(layers, attentions, mlps, strict=True)),
        kind="parallel" if seen.parallel else "sandwich" if seen.attn_norm else "serial",
        n_heads=n_heads,
        n_kv_heads=_kv_heads(attentions[0], n_heads),
        d_head=d_head,
        d_model=seen.d_model,
        layer_gives_tuple=seen.layer_gives_tuple,
        attn_gives_tuple=seen.attn_gives_tuple,
        exchangeable=seen.exchangeable and None not in attentions and None not in mlps,
    )


def _block(layer: nn.Module, attn: nn.Module | None, mlp: nn.Module | None, seen: Seen) -> Block:
    return Block(
        layer=layer,
        attn=attn,
        attn_out_proj=_named(attn, OUT_PROJECTION_NAMES),
        attn_end=attn and (getattr(layer, seen.attn_norm) if seen.attn_norm else attn),
        mlp=mlp,
        mlp_out_proj=_named(mlp, MLP_OUT_NAMES),
        mlp_end=mlp and (getattr(layer, seen.mlp_norm) if seen.mlp_norm else mlp),
        middle=getattr(layer, seen.middle, None) if seen.middle else None,
    )


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """The longest list of modules that are all decoder layers, or all of one class where transformers declares none."""
    is_layer, lists = _recorded(model, "hidden_states"), _outer_lists(model)
    alike = [found for found in lists if (all(map(is_layer, found)) if is_layer else len({type(layer) for layer in found}) == 1)]
    if not alike:
        raise UnknownAnatomy(f"{type(model).__name__} has no list of layers that the engine can find.", next_step="Choose another model.")
    return list(max(alike, key=len))


def _outer_lists(model: PreTrainedModel) -> list[nn.ModuleList]:
    """Lists that are not inside a layer: those are experts and the like."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)}
    return [found for name, found in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]


def _final_norm(model: PreTrainedModel, layers: Sequence[nn.Module]) -> nn.Module | None:
    """The norm that stands beside the list of layers."""
    for parent in model.modules():
        if any(isinstance(child, nn.ModuleList) and len(child) and child[0] is layers[0] for child in parent.children()):
            return _named(parent, FINAL_NORM_NAMES)
    return None


def _attention(model: PreTrainedModel, layer: nn.Module) -> nn.Module | None:
    is_attention = _recorded(model, "attentions") or (lambda _: False)
    found = [child for name, child in layer.named_children() if is_attention(child) and "cross" not in name]
    return found[0] if len(found) == 1 else _named(layer, ATTENTION_NAMES)


def _recorded(model: PreTrainedModel, key: str) -> Callable[[nn.Module], bool] | None:
    """A test for the classes that transformers declares for `hidden_states` or `attentions`; None where it declares none."""
    declared = (getattr(model, "_can_record_outputs", None) or {}).get(key)
    entries = declared if isinstance(declared, list) else [declared]
    classes = [getattr(entry, "target_class", entry) for entry in entries]
    types = tuple(entry for entry in classes if isinstance(entry, type))
    return (lambda module: isinstance(module, types)) if types else None


def _named(parent: nn.Module | None, names: Sequence[str]) -> nn.Module | None:
    children = dict(parent.named_children()) if parent is not None else {}
    return next((children[name] for name in names if name in children), None)


def _in_width(projection: nn.Module) -> int:
    """Width of what goes in. Conv1D keeps its weight as [in, out], everything else says `in_features`."""
    width = getattr(projection, "in_features", None)
    return int(width) if width is not None else int(projection.weight.shape[0])  # type: ignore[union-attr, index]


def _heads(model: PreTrainedModel, attentions: Sequence[nn.Module | None]) -> tuple[int, int]:
    """Query heads and width of one; (0, 0) where layers differ or the widths do not add up."""
    found = {_heads_of(model, attn) for attn in attentions}
    return found.pop() if len(found) == 1 else (0, 0)


def _heads_of(model: PreTrainedModel, attn: nn.Module | None) -> tuple[int, int]:
    projection = _named(attn, OUT_PROJECTION_NAMES)
    if attn is None or projection is None:
        return 0, 0
    width = _in_width(projection)
    d_head = getattr(attn, "head_dim", None) or getattr(attn, "head_size", None)
    if not isinstance(d_head, int):
        d_head = width // model.config.get_text_config().num_attention_heads
    return (width // d_head, d_head) if width % d_head == 0 else (0, 0)


def _kv_heads(attn: nn.Module | None, n_heads: int) -> int:
    """Heads of keys and values; as many as query heads unless the attention says that they are shared."""
    groups = getattr(attn, "num_key_value_groups", 1)
    return n_heads // groups if isinstance(groups, int) and groups > 0 else n_heads
