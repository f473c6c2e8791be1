"""From edits as data to changes of a loaded model: names become tensors, and everything is checked against the model first."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from engine.errors import SpecError
from engine.hooks.change import Change, Condition
from engine.hooks.edit import RULES, Edit, TensorRef, Value, When
from engine.hooks.inputs import input_device
from engine.hooks.sites import Site
from engine.hooks.wiring import Addressed


@runtime_checkable
class Reference(Protocol):
    """Activations of other prompts, which stand in for those of the prompts at hand."""

    def mean(self, site: Site) -> Tensor:
        """[width]: the mean over all tokens."""
        ...

    def drawn(self, site: Site, seed: int) -> Tensor:
        """[batch, pos, width], or [pos, width] for all rows: what prompts that `seed` draws have there, by token index."""
        ...


def bind(
    edits: Sequence[Edit],
    loaded: Addressed,
    *,
    tensors: Mapping[str, Tensor] | None = None,
    rows: slice | None = None,
    reference: Reference | None = None,
) -> list[Change]:
    """The changes that edits mean for a model. An edit at its neutral strength means none.

    Args:
        edits: what is to be changed.
        loaded: the model.
        tensors: tensors by hash, for values that are a `TensorRef`.
        rows: rows of the batch that are changed; all when None.
        reference: what `mean` and `resample` put in the place of the activation.

    Raises:
        SpecError: an edit does not fit the model, or names a tensor or a reference that is not there.
        UnknownAnatomy: the model has no such site.
    """
    for edit in edits:
        loaded.anatomy.check(edit.site)
    changes = [_change(edit, loaded, tensors or {}, rows, reference) for edit in edits]
    return [change for edit, change in zip(edits, changes, strict=True) if not edit.neutral]


def hash_of(tensor: Tensor) -> str:
    """SHA-256 over dtype, shape and values: what a `TensorRef` names a tensor by."""
    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{plain.dtype}|{tuple(plain.shape)}|".encode())
    digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _change(edit: Edit, loaded: Addressed, tensors: Mapping[str, Tensor], rows: slice | None, reference: Reference | None) -> Change:
    return Change(
        site=edit.site,
        op=edit.op,
        value=_value(edit, loaded, tensors, reference),
        strength=edit.amount,
        rows=rows,
        positions=edit.positions,
        keys=edit.keys,
        when=_condition(edit.when, edit, loaded, tensors),
        by_token=True,
    )


def _value(edit: Edit, loaded: Addressed, tensors: Mapping[str, Tensor], reference: Reference | None) -> Tensor | None:
    if edit.op in ("mean", "resample"):
        return _stand_in(edit, reference)
    if edit.value is None:
        return None
    value = _tensor(edit.value, tensors).to(input_device(loaded.model))
    _refuse_misfit(value, edit.site, loaded)
    return _direction(value, edit) if RULES[edit.op].value == "direction" else value


def _stand_in(edit: Edit, reference: Reference | None) -> Tensor:
    if reference is None:
        raise SpecError(
            f"op '{edit.op}' puts other prompts' activations in place, but no prompts were given.", next_step="Give reference prompts."
        )
    return reference.mean(edit.site) if edit.op == "mean" else reference.drawn(edit.site, edit.seed)


def _tensor(value: Value, tensors: Mapping[str, Tensor]) -> Tensor:
    if not isinstance(value, TensorRef):
        return _from_lists(value)
    if value.sha256 not in tensors:
        raise SpecError(f"the tensor {value.sha256[:12]}… of an edit is not here.", next_step="Give it with the edit.")
    found = tensors[value.sha256]
    if tuple(found.shape) != value.shape:
        raise SpecError(
            f"the tensor {value.sha256[:12]}… has shape {tuple(found.shape)}; the edit says {value.shape}.", next_step="Correct the edit."
        )
    return found.float()


def _from_lists(value: object) -> Tensor:
    try:
        return torch.tensor(value, dtype=torch.float32)
    except (ValueError, TypeError) as wrong:
        raise SpecError("the rows of a value differ in length.", next_step="Give one vector of equal length per token.") from wrong


def _refuse_misfit(value: Tensor, site: Site, loaded: Addressed) -> None:
    width = 1 if site.unit is not None else loaded.anatomy.width(site)
    if value.dim() and width is not None and value.shape[-1] != width:
        whole = f" (all heads of '{site.name}' together; name a head for one of them)" if site.name == "z" and site.head is None else ""
        raise SpecError(
            f"a value with {value.shape[-1]} numbers does not fit site '{site.hook_name}': expected {width}{whole}.",
            next_step="Give one number for each column.",
        )
    if value.dim() > 3:
        raise SpecError(
            f"a value of shape {tuple(value.shape)} does not fit site '{site.hook_name}'.",
            next_step="Give a number, a vector, a table by token, or a table for each row.",
        )
    if not torch.isfinite(value).all():
        raise SpecError(f"a value for site '{site.hook_name}' is not finite.", next_step="Correct the numbers.")


def _direction(value: Tensor, edit: Edit) -> Tensor:
    """The value at length 1."""
    length = torch.linalg.vector_norm(value, dim=-1, keepdim=True) if value.dim() else value.abs()
    if not bool((length > 0).all()):
        raise SpecError(
            f"op '{edit.op}' at '{edit.site.hook_name}' has a direction of length 0.", next_step="Give a vector that is not zero."
        )
    return value / length


def _condition(when: When | None, edit: Edit, loaded: Addressed, tensors: Mapping[str, Tensor]) -> Condition | None:
    if when is None:
        return None
    site = when.site or edit.site
    loaded.anatomy.check(site)
    feature = _tensor(when.feature, tensors).to(input_device(loaded.model))
    _refuse_misfit(feature, site, loaded)
    width = 1 if site.unit is not None else loaded.anatomy.width(site)
    if not feature.dim() and width not in (None, 1):
        raise SpecError(
            f"the feature of a condition at '{site.hook_name}' is one number: expected {width}.",
            next_step="Give one number for each column.",
        )
    if feature.dim() > 1:
        raise SpecError(f"the feature of a condition is one direction; it has shape {tuple(feature.shape)}.", next_step="Give one vector.")
    return Condition(
        feature=feature.reshape(-1), site=None if site == edit.site else site, above=when.relation == ">", threshold=when.threshold
    )
