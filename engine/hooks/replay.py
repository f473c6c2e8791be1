"""The shortcut behind a sweep: an edited variant starts from what the clean run stored, at the first layer that it changes."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from engine.hooks.anatomy import Anatomy
from engine.hooks.batch import Batch, forward
from engine.hooks.call import Calls, TokenView
from engine.hooks.capture import captured_places
from engine.hooks.change import Change, changed
from engine.hooks.place import Place
from engine.hooks.replaced import answer, passed_on, replaced
from engine.hooks.wiring import Addressed, changing, edited

Variant = Sequence[Change]
Way = Literal["z", "attn_out", "mlp_out", "general", "whole"]
"""What a replay begins with: a part of one layer that is exchanged, the residual stream, or the tokens."""
Part = Literal["resid_pre", "z", "attn", "attn_end", "mlp", "mlp_end"]
PARTS: dict[Way, tuple[Part, ...]] = {
    "z": ("resid_pre", "z"),
    "attn_out": ("resid_pre", "attn", "attn_end"),
    "mlp_out": ("resid_pre", "attn", "mlp_end"),
    "general": ("resid_pre",),
    "whole": (),
}
"""What the clean run stores for each way of replaying; in a parallel block also the MLP's output."""


@runtime_checkable
class Readout(Protocol):
    """A number per prompt, read off the logits."""

    @property
    def positions(self) -> Tensor | None:
        """Positions whose logits it reads, ascending; None for all."""
        ...

    def __call__(self, logits: Tensor) -> Tensor:
        """[rows] from logits [rows, kept, vocab]; rows are the batch's prompts, once or repeated."""
        ...


@dataclass(frozen=True, slots=True)
class Group:
    """Variants that begin at the same layer and can be replayed in the same way."""

    layer: int
    way: Way
    variants: list[int] = field(default_factory=list[int])


Stored = dict[tuple[int, Part], Tensor]
"""Tensors of the clean run by layer and part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What replays of one batch share: the clean run's tensors by layer and part."""

    loaded: Addressed
    batch: Batch
    readout: Readout
    stored: Stored

    @property
    def anatomy(self) -> Anatomy:
        """Where the model's sites are."""
        return self.loaded.anatomy

    @property
    def calls(self) -> Calls:
        """The batch as a call of the model would tell of it."""
        return Calls.at(TokenView.of(self.batch, special=self.loaded.special_ids))


def clean_run(loaded: Addressed, batch: Batch, readout: Readout, groups: Sequence[Group]) -> tuple[Tensor, Stored]:
    """The clean metric, and what the groups' replays start from."""
    anatomy = loaded.anatomy
    places = {(group.layer, part): _place(anatomy, group.layer, part) for group in groups for part in _parts(anatomy, group)}
    with captured_places(places) as stored:
        logits = forward(loaded.model, batch, readout.positions)
    return readout(logits), stored


def _parts(anatomy: Anatomy, group: Group) -> tuple[Part, ...]:
    beside: tuple[Part, ...] = ("mlp",) if anatomy.kind == "parallel" and group.way in ("z", "attn_out") else ()
    return PARTS[group.way] + beside


def _place(anatomy: Anatomy, layer: int, part: Part) -> Place:
    block = anatomy.blocks[layer]
    module = {
        "resid_pre": block.layer,
        "z": block.attn_out_proj,
        "attn": block.attn,
        "attn_end": block.attn_end,
        "mlp": block.mlp,
        "mlp_end": block.mlp_end,
    }[part]
    assert module is not None, f"layer {layer} has no {part}"
    return Place(module, "in" if part in ("resid_pre", "z") else "out")


def replayed(run: Replay, group: Group, chunk: Sequence[Variant]) -> Tensor:
    """[variants * batch]: the metric of a chunk of one group."""
    if group.way in ("general", "whole"):
        return _with_edits(run, group, chunk)
    return _from_exchange(run, group, chunk)


def _with_edits(run: Replay, group: Group, chunk: Sequence[Variant]) -> Tensor:
    """Starts at a layer's input, or at the tokens; the edits are hooks on their rows."""
    changes = [_moved(change, index * run.batch.size, run.batch.size) for index, variant in enumerate(chunk) for change in variant]
    with ExitStack() as stack:
        if group.way == "general":
            _start_at(stack, run.anatomy, group.layer, _repeated(run.stored[group.layer, "resid_pre"], len(chunk)))
        stack.enter_context(edited(run.loaded, changes))
        return run.readout(forward(run.loaded.model, run.batch.repeated(len(chunk)), run.readout.positions))


def _moved(change: Change, start: int, size: int) -> Change:
    """The change on one copy of the batch among many."""
    first, last, _ = (change.rows or slice(None)).indices(size)
    return replace(change, rows=slice(start + first, start + last))


def _from_exchange(run: Replay, group: Group, chunk: Sequence[Variant]) -> Tensor:
    """Starts at a layer whose attention and MLP outputs are given as far as they are known."""
    outputs = _known_outputs(run, group, chunk)
    resid = _repeated(run.stored[group.layer, "resid_pre"], len(chunk))
    last = run.anatomy.n_layers - 1
    if not _prunes(run):
        return _finish(run, group.layer, resid, outputs)
    if group.layer < last:
        resid, outputs = _up_to_last_attention(run, group.layer, resid, outputs)
    return _finish_pruned(run, resid, outputs)


Outputs = dict[Literal["attn", "attn_end", "mlp", "mlp_end"], Tensor]
"""Known outputs of one layer's modules, [rows, pos, d_model]."""


def _known_outputs(run: Replay, group: Group, chunk: Sequence[Variant]) -> Outputs:
    """What the modules of the group's layer give in each variant, as far as it needs no work."""
    block, stored, layer = run.anatomy.blocks[group.layer], run.stored, group.layer
    exchanged = torch.cat([_all_changed(run, stored[layer, PARTS[group.way][-1]], variant) for variant in chunk])
    outputs: Outputs = {}
    if group.way == "z":
        assert block.attn_out_proj is not None, "z is what goes into this projection"
        with torch.no_grad():
            outputs["attn"] = block.attn_out_proj(exchanged)
    else:
        outputs["attn"] = _repeated(stored[layer, "attn"], len(chunk))
        outputs["attn_end" if group.way == "attn_out" else "mlp_end"] = exchanged
    if group.way == "mlp_out":
        outputs["mlp"] = exchanged  # keeps the MLP from being run; a norm behind it is given above
    elif run.anatomy.kind == "parallel":
        outputs["mlp"] = _repeated(stored[layer, "mlp"], len(chunk))
    return outputs


def _all_changed(run: Replay, x: Tensor, variant: Variant) -> Tensor:
    for change in variant:
        x = changed(x, change, run.anatomy, None if change.everywhere else run.calls)
    return x


def _repeated(x: Tensor, times: int) -> Tensor:
    return x.repeat(times, *[1] * (x.dim() - 1))


def _start_at(stack: ExitStack, anatomy: Anatomy, layer: int, resid: Tensor) -> None:
    """The layers below do nothing, and this one is given `resid`."""
    for block in anatomy.blocks[:layer]:
        stack.enter_context(replaced(block.layer, passed_on(as_tuple=anatomy.layer_gives_tuple)))
    stack.enter_context(changing(Place(anatomy.blocks[layer].layer, "in"), lambda _: resid))


def _exchange(stack: ExitStack, anatomy: Anatomy, layer: int, outputs: Outputs) -> None:
    block = anatomy.blocks[layer]
    modules = {"attn": block.attn, "attn_end": block.attn_end, "mlp": block.mlp, "mlp_end": block.mlp_end}
    for part, tensor in outputs.items():
        module = modules[part]
        assert module is not None, f"layer {layer} has no {part}"
        stack.enter_context(replaced(module, answer(tensor, as_tuple=module is block.attn and anatomy.attn_gives_tuple)))


def _finish(run: Replay, layer: int, resid: Tensor, outputs: Outputs) -> Tensor:
    """From a layer with known outputs to the metric."""
    batch = run.batch.repeated(resid.shape[0] // run.batch.size)
    with ExitStack() as stack:
        _start_at(stack, run.anatomy, layer, resid)
        _exchange(stack, run.anatomy, layer, outputs)
        return run.readout(forward(run.loaded.model, batch, run.readout.positions))


def _prunes(run: Replay) -> bool:
    """Whether the last layer is worth doing at the read positions only: behind its attention each position is on its own."""
    positions = run.readout.positions
    return positions is not None and 2 * len(positions) <= run.batch.width


def _up_to_last_attention(run: Replay, layer: int, resid: Tensor, outputs: Outputs) -> tuple[Tensor, Outputs]:
    """The last layer's input and attention output; the forward pass is left there."""
    anatomy, top = run.anatomy, run.anatomy.n_layers - 1
    batch = run.batch.repeated(resid.shape[0] // run.batch.size)
    with ExitStack() as stack:
        _start_at(stack, anatomy, layer, resid)
        _exchange(stack, anatomy, layer, outputs)
        got = stack.enter_context(captured_places({"resid_pre": _place(anatomy, top, "resid_pre")}))
        stack.enter_context(changing(_place(anatomy, top, "attn"), _leave))
        try:
            forward(run.loaded.model, batch)
        except _Enough as enough:
            return got["resid_pre"], {"attn": enough.tensor}
    raise AssertionError("the last layer's attention was not reached")


class _Enough(Exception):
    """Leaves a forward pass from inside, with the tensor that was wanted."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__("left the forward pass")
        self.tensor = tensor


def _leave(x: Tensor) -> Tensor:
    raise _Enough(x)


def _finish_pruned(run: Replay, resid: Tensor, outputs: Outputs) -> Tensor:
    """The last layer behind its attention, the final norm and the head, at the read positions."""
    positions, top = run.readout.positions, run.anatomy.n_layers - 1
    assert positions is not None
    batch = run.batch.at(positions).repeated(resid.shape[0] // run.batch.size)
    with ExitStack() as stack:
        _start_at(stack, run.anatomy, top, resid[:, positions])
        _exchange(stack, run.anatomy, top, {part: tensor[:, positions] for part, tensor in outputs.items()})
        return run.readout(forward(run.loaded.model, batch))
