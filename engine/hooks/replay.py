"""The shortcut behind a sweep: an edited variant starts from what the clean run stored, at the first layer that it changes."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from engine.hooks.anatomy import Anatomy, Block
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
KEPT_BYTES = 31 * 2**20
"""Just below the largest block that glibc's malloc takes as a hint."""


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

    @property
    def exchanges(self) -> bool:
        """Whether a part of the layer is exchanged; otherwise the edits are hooks in the forward pass."""
        return self.way not in ("general", "whole")


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
    _keep_freed_memory(batch.input_ids.device)
    places = {(group.layer, part): _place(anatomy, group.layer, part) for group in groups for part in _parts(anatomy, group)}
    with captured_places(places, anatomy) as stored:
        logits = forward(loaded.model, batch, readout.positions)
    return readout(logits), stored


def _keep_freed_memory(device: torch.device) -> None:
    """Teaches glibc to keep memory that tensors give back.

    At first it returns every large block to the system, so that each new tensor has to be given fresh pages; that cost a fifth of a
    sweep's time. Freeing one block of nearly 32 MB makes it keep smaller ones, and 62 MB in all. Nothing is written to that block.
    """
    if device.type == "cpu":
        torch.empty(KEPT_BYTES, dtype=torch.uint8)


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
    batch, top = run.batch.repeated(len(chunk)), run.anatomy.n_layers - 1
    if not _prunes(run, group, chunk):
        with _begun(run, group, chunk):
            return run.readout(forward(run.loaded.model, batch, run.readout.positions))
    if group.exchanges and group.layer == top:
        resid, outputs = _start(run, group, chunk, run.readout.positions)
    else:
        resid, outputs = _last_attention(run, group, chunk, batch)
    return _finish(run, resid, outputs)


@contextmanager
def _begun(run: Replay, group: Group, chunk: Sequence[Variant]) -> Iterator[None]:
    """Inside the block a forward pass of the chunk begins where the group begins."""
    with ExitStack() as stack:
        if group.exchanges:
            start_at(stack, run.anatomy, group.layer, *_start(run, group, chunk))
        elif group.way == "general":
            start_at(stack, run.anatomy, group.layer, _repeated(run.stored[group.layer, "resid_pre"], len(chunk)), {})
        if not group.exchanges:
            stack.enter_context(edited(run.loaded, _by_rows(run, chunk)))
        yield


def _by_rows(run: Replay, chunk: Sequence[Variant]) -> list[Change]:
    """The changes of all variants, each on its own copy of the batch."""
    return [_moved(change, index * run.batch.size, run.batch.size) for index, variant in enumerate(chunk) for change in variant]


def _moved(change: Change, start: int, size: int) -> Change:
    """The change on one copy of the batch among many."""
    first, last, _ = (change.rows or slice(None)).indices(size)
    return replace(change, rows=slice(start + first, start + last))


Outputs = dict[Literal["attn", "attn_end", "mlp", "mlp_end"], Tensor]
"""Known outputs of one layer's modules, [rows, pos, d_model]."""


def _start(run: Replay, group: Group, chunk: Sequence[Variant], positions: Tensor | None = None) -> tuple[Tensor, Outputs]:
    """What goes into the group's layer, and what its modules give in each variant as far as it needs no work; at `positions` only."""
    block, times = run.anatomy.blocks[group.layer], len(chunk)
    stored = {part: _cut(run.stored[group.layer, part], positions) for part in _parts(run.anatomy, group)}
    exchanged = _cut(_exchanged(run, group, chunk), positions)
    outputs: Outputs = {}
    if group.way == "z":
        outputs["attn"] = _projected(block, exchanged)
    else:
        outputs["attn"] = _repeated(stored["attn"], times)
        outputs["attn_end" if group.way == "attn_out" else "mlp_end"] = exchanged
    if group.way == "mlp_out":
        outputs["mlp"] = exchanged  # keeps the MLP from being run; a norm behind it is given above
    elif run.anatomy.kind == "parallel":
        outputs["mlp"] = _repeated(stored["mlp"], times)
    return _repeated(stored["resid_pre"], times), outputs


def _exchanged(run: Replay, group: Group, chunk: Sequence[Variant]) -> Tensor:
    """[variants * batch, pos, width]: the part that the group's variants change."""
    clean = run.stored[group.layer, PARTS[group.way][-1]]
    return torch.cat([_all_changed(run, clean, variant) for variant in chunk])


def _all_changed(run: Replay, x: Tensor, variant: Variant) -> Tensor:
    for change in variant:
        x = changed(x, change, run.anatomy, None if change.everywhere else run.calls)
    return x


def _projected(block: Block, z: Tensor) -> Tensor:
    """What attention gives for this z."""
    assert block.attn_out_proj is not None, "z is what goes into this projection"
    with torch.no_grad():
        return block.attn_out_proj(z)


def _repeated(x: Tensor, times: int) -> Tensor:
    return x.repeat(times, *[1] * (x.dim() - 1))


def _cut(x: Tensor, positions: Tensor | None) -> Tensor:
    return x if positions is None else x[:, positions.to(x.device)]


def start_at(stack: ExitStack, anatomy: Anatomy, layer: int, resid: Tensor, outputs: Outputs) -> None:
    """The layers below do nothing; this one is given `resid`, and its modules answer with what is known of them."""
    for block in anatomy.blocks[:layer]:
        stack.enter_context(replaced(block.layer, passed_on(as_tuple=anatomy.layer_gives_tuple)))
    block = anatomy.blocks[layer]
    stack.enter_context(changing(Place(block.layer, "in"), lambda _: resid))
    modules = {"attn": block.attn, "attn_end": block.attn_end, "mlp": block.mlp, "mlp_end": block.mlp_end}
    for part, tensor in outputs.items():
        module = modules[part]
        assert module is not None, f"layer {layer} has no {part}"
        stack.enter_context(replaced(module, answer(tensor, as_tuple=module is block.attn and anatomy.attn_gives_tuple)))


def _prunes(run: Replay, group: Group, chunk: Sequence[Variant]) -> bool:
    """Whether the last layer is done at the read positions only: behind its attention each position is on its own.

    That is worth it where few are read, and possible where nothing but a known part of the last layer is changed.
    """
    positions, anatomy, top = run.readout.positions, run.anatomy, run.anatomy.n_layers - 1
    if positions is None or 2 * len(positions) > run.batch.width or anatomy.blocks[top].attn_out_proj is None or not anatomy.exchangeable:
        return False
    sites = [change.site for variant in chunk for change in variant]
    return group.exchanges or all(site.name == "embed" or (site.layer is not None and site.layer < top) for site in sites)


def _last_attention(run: Replay, group: Group, chunk: Sequence[Variant], batch: Batch) -> tuple[Tensor, Outputs]:
    """The last layer's input and attention output at the read positions."""
    anatomy, top, positions = run.anatomy, run.anatomy.n_layers - 1, run.readout.positions
    places = {"resid_pre": _place(anatomy, top, "resid_pre")}
    with _begun(run, group, chunk), captured_places(places, anatomy) as got:
        z = _left_at(_place(anatomy, top, "z"), run, batch)
    return _cut(got["resid_pre"], positions), {"attn": _projected(anatomy.blocks[top], _cut(z, positions))}


def _left_at(place: Place, run: Replay, batch: Batch) -> Tensor:
    """The tensor at a place; the forward pass is left there."""
    with changing(place, _leave):
        try:
            forward(run.loaded.model, batch)
        except _Enough as enough:
            return enough.tensor
    raise AssertionError("the forward pass did not come to where it was to be left")


class _Enough(Exception):
    """Leaves a forward pass from inside, with the tensor that was wanted."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__("left the forward pass")
        self.tensor = tensor


def _leave(x: Tensor) -> Tensor:
    raise _Enough(x)


def _finish(run: Replay, resid: Tensor, outputs: Outputs) -> Tensor:
    """The last layer behind its attention, the final norm and the head, at the read positions."""
    positions, top = run.readout.positions, run.anatomy.n_layers - 1
    assert positions is not None, "nothing is left out when all positions are read"
    batch = run.batch.at(positions).repeated(resid.shape[0] // run.batch.size)
    with ExitStack() as stack:
        start_at(stack, run.anatomy, top, resid, outputs)
        return run.readout(forward(run.loaded.model, batch))
