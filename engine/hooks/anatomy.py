"""Where each site is in a model, found by looking at its structure. The only file that knows module names.

Layers and attentions are the classes that transformers declares in `_can_record_outputs`; projections are found by a short
list of names; everything else (parallel or serial block, norms behind attention and MLP, where the middle of the block is)
is read off one small forward pass through the first layer.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from threading import RLock
from typing import Literal, NamedTuple, Protocol

from torch import nn
from transformers import PreTrainedModel

from engine.errors import SpecError, UnknownAnatomy
from engine.hooks.observation import Parts, Seen, observe
from engine.hooks.sites import Site

ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")
OUT_PROJECTION_NAMES = ("o_proj", "c_proj", "dense", "out_proj", "wo")
MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
MLP_OUT_NAMES = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "out_proj")

BlockKind = Literal["serial", "parallel", "sandwich"]


class Place(NamedTuple):
    """A tensor in the forward pass: what goes into a module, or what comes out of it."""

    module: nn.Module
    side: Literal["in", "out"]


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
        blocks: the layers from bottom to top.
        kind: `serial` (the MLP reads what attention wrote), `parallel` (both read the layer's input), or `sandwich`
            (serial, with a norm behind attention and behind the MLP).
        n_heads: query heads per layer; 0 where heads cannot be told apart.
        d_head: width of one head's slice of z.
        d_model: width of the residual stream.
        layer_gives_tuple: whether a layer answers with a tuple.
        attn_gives_tuple: whether attention answers with a tuple.
        exchangeable: whether a layer can be redone from a given attention or MLP output alone.
    """

    blocks: tuple[Block, ...]
    kind: BlockKind
    n_heads: int
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
        if site.layer >= self.n_layers:
            raise SpecError(f"layer {site.layer} does not exist: {model} has layers 0 to {self.n_layers - 1}.")
        self.place(site)
        if site.head is not None and site.head >= self.n_heads:
            raise SpecError(f"head {site.head} does not exist: {model} has heads 0 to {self.n_heads - 1} in each layer.")

    def place(self, site: Site) -> Place:
        """The tensor that a site means; for a head the whole z, of which `head_slice` is the part.

        Raises:
            UnknownAnatomy: this model has no such place.
        """
        block = self.blocks[site.layer]
        match site.name:
            case "resid_pre":
                return Place(block.layer, "in")
            case "resid_post":
                return Place(block.layer, "out")
            case "resid_mid":
                return Place(self._found(block.middle, site), "in")
            case "z":
                return Place(self._found(block.attn_out_proj if self.n_heads else None, site), "in")
            case "attn_out":
                return Place(self._found(block.attn_end, site), "out")
            case "mlp_out":
                return Place(self._found(block.mlp_end, site), "out")
            case "neurons":
                return Place(self._found(block.mlp_out_proj, site), "in")

    def head_slice(self, head: int) -> slice:
        """The columns of z that belong to a query head."""
        return slice(head * self.d_head, (head + 1) * self.d_head)

    def _found(self, module: nn.Module | None, site: Site) -> nn.Module:
        if module is not None:
            return module
        beside = site.name == "resid_mid" and self.kind == "parallel"
        reason = "its attention and MLP work side by side" if beside else "the engine did not find it"
        layer = type(self.blocks[0].layer).__name__
        raise UnknownAnatomy(f"{layer} has no site '{site.hook_name}': {reason}.", next_step="Choose another site.")


class Addressed(Protocol):
    """What edits, captures and sweeps need to know of a loaded model."""

    @property
    def model(self) -> PreTrainedModel:
        """The model itself."""
        ...

    @property
    def anatomy(self) -> Anatomy:
        """Where its sites are."""
        ...

    @property
    def lock(self) -> RLock:
        """Held while anything is hooked into the model."""
        ...


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
        blocks=tuple(_block(*parts, seen) for parts in zip(layers, attentions, mlps, strict=True)),
        kind="parallel" if seen.parallel else "sandwich" if seen.attn_norm else "serial",
        n_heads=n_heads,
        d_head=d_head,
        d_model=seen.d_model,
        layer_gives_tuple=seen.layer_gives_tuple,
        attn_gives_tuple=seen.attn_gives_tuple,
        exchangeable=seen.exchangeable and None not in attentions and None not in mlps,
    )


def accepts(model: PreTrainedModel, argument: str) -> bool:
    """Whether the model's forward takes an argument of that name."""
    return argument in _arguments(type(model))


@cache
def _arguments(model_class: type[PreTrainedModel]) -> frozenset[str]:
    return frozenset(inspect.signature(model_class.forward).parameters)


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
