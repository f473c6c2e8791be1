"""The anatomy of a model, found by looking at its structure. The only file that knows module names.

Layers and attentions are the classes that transformers declares in `_can_record_outputs`; projections are found by a short
list of names; everything else (parallel or serial block, norms behind attention and MLP, where the middle of the block is)
is read off two small forward passes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace

from torch import nn
from transformers import PreTrainedModel

from engine.errors import UnknownAnatomy
from engine.hooks.anatomy import Anatomy, Block, in_width
from engine.hooks.observation import Parts, Seen, Shapes, observe, shapes
from engine.hooks.place import Place

ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")
OUT_PROJECTION_NAMES = ("o_proj", "c_proj", "dense", "out_proj", "wo")
MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
FINAL_NORM_NAMES = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "norm_f")
MLP_OUT_NAMES = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "out_proj")


def find_anatomy(model: PreTrainedModel) -> Anatomy:
    """The anatomy of a causal language model; runs it on a few tokens.

    Raises:
        UnknownAnatomy: no list of layers was found.
    """
    layers = _layers(model)
    attentions = [_attention(model, layer) for layer in layers]
    mlps = [_named(layer, MLP_NAMES) for layer in layers]
    bottom = Parts(layers[0], attentions[0], _named(attentions[0], OUT_PROJECTION_NAMES), mlps[0])
    seen = observe(model, bottom, layers[1:])
    blocks = [_block(*parts, seen) for parts in zip(layers, attentions, mlps, strict=True)]
    shaped = shapes(model, {part for block in blocks for part in _modules_of(block) if part is not None})
    _refuse_other_streams(model, layers, shaped)
    n_heads, d_head = _heads(model, attentions)
    return Anatomy(
        whole=model,
        embed=model.get_input_embeddings(),
        final=_final_norm(model, layers),
        blocks=tuple(_by_token(block, shaped) for block in blocks),
        kind="parallel" if seen.parallel else "sandwich" if seen.attn_norm else "serial",
        n_heads=n_heads,
        n_kv_heads=_kv_heads(attentions[0], n_heads),
        d_head=d_head,
        d_model=seen.d_model,
        layer_gives_tuple=seen.layer_gives_tuple,
        attn_gives_tuple=seen.attn_gives_tuple,
        overwritten=frozenset(Place(module, side) for module, one in shaped.items() for side in one.overwritten),
        exchangeable=seen.exchangeable and all(_exchangeable(block, shaped) for block in blocks),
    )


def _modules_of(block: Block) -> list[nn.Module | None]:
    """The modules of a block."""
    return [getattr(block, field.name) for field in fields(block)]


def _refuse_other_streams(model: PreTrainedModel, layers: Sequence[nn.Module], shaped: Mapping[nn.Module, Shapes]) -> None:
    """Refuses models whose layers do not hand on one vector per token."""
    wrong = [layer for layer in layers if not (shaped[layer].given_by_token and shaped[layer].gave_by_token)]
    if wrong:
        raise UnknownAnatomy(
            f"{type(model).__name__} has layers ({type(wrong[0]).__name__}) that do not hand on one vector per token.",
            next_step="Choose another model.",
        )


def _by_token(block: Block, shaped: Mapping[nn.Module, Shapes]) -> Block:
    """The block without parts whose tensors are not one vector per row and token, as where experts get tokens in one long row."""
    return replace(
        block,
        attn_out_proj=block.attn_out_proj if _given(block.attn_out_proj, shaped) else None,
        mlp_out_proj=block.mlp_out_proj if _given(block.mlp_out_proj, shaped) else None,
        attn_end=block.attn_end if _gave(block.attn_end, shaped) else None,
        mlp_end=block.mlp_end if _gave(block.mlp_end, shaped) else None,
        middle=block.middle if _given(block.middle, shaped) else None,
    )


def _exchangeable(block: Block, shaped: Mapping[nn.Module, Shapes]) -> bool:
    """Whether attention and MLP each give one vector per token, and the layer runs once."""
    return _gave(block.attn, shaped) and _gave(block.mlp, shaped) and shaped[block.layer].times == 1


def _given(module: nn.Module | None, shaped: Mapping[nn.Module, Shapes]) -> bool:
    return module is not None and shaped[module].given_by_token


def _gave(module: nn.Module | None, shaped: Mapping[nn.Module, Shapes]) -> bool:
    return module is not None and shaped[module].gave_by_token


def _block(layer: nn.Module, attn: nn.Module | None, mlp: nn.Module | None, seen: Seen) -> Block:
    inner = _named(mlp, MLP_OUT_NAMES) if mlp is not None else _named(layer, ("fc2",))  # some layers have no module for their MLP
    return Block(
        layer=layer,
        attn=attn,
        attn_out_proj=_named(attn, OUT_PROJECTION_NAMES),
        attn_end=_named(attn, OUT_PROJECTION_NAMES) if seen.attn_carries else _behind(layer, seen.attn_norm, attn),
        mlp=mlp,
        mlp_out_proj=inner,
        mlp_end=inner if seen.mlp_carries else _behind(layer, seen.mlp_norm, mlp or inner),
        middle=getattr(layer, seen.middle, None) if seen.middle else None,
    )


def _behind(layer: nn.Module, norm: str | None, part: nn.Module | None) -> nn.Module | None:
    """The norm behind a part of a layer, or the part itself."""
    return getattr(layer, norm) if part is not None and norm else part


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


def _heads(model: PreTrainedModel, attentions: Sequence[nn.Module | None]) -> tuple[int, int]:
    """Query heads and width of one; (0, 0) where layers differ or the widths do not add up."""
    found = {_heads_of(model, attn) for attn in attentions}
    return found.pop() if len(found) == 1 else (0, 0)


def _heads_of(model: PreTrainedModel, attn: nn.Module | None) -> tuple[int, int]:
    projection = _named(attn, OUT_PROJECTION_NAMES)
    if attn is None or projection is None:
        return 0, 0
    width = in_width(projection)
    d_head = getattr(attn, "head_dim", None) or getattr(attn, "head_size", None)
    if not isinstance(d_head, int):
        d_head = width // model.config.get_text_config().num_attention_heads
    return (width // d_head, d_head) if width % d_head == 0 else (0, 0)


def _kv_heads(attn: nn.Module | None, n_heads: int) -> int:
    """Heads of keys and values; as many as query heads unless the attention says that they are shared."""
    groups = getattr(attn, "num_key_value_groups", 1)
    return n_heads // groups if isinstance(groups, int) and groups > 0 else n_heads
