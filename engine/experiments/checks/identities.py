"""What must hold between the sites of one forward pass, and between a head and its rows of the weights."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from engine.experiments.checks.subject import RELATIVE, Measured, NotApplicable, Subject, apart, largest
from engine.hooks.batch import forward
from engine.hooks.capture import captured
from engine.hooks.change import Change
from engine.hooks.replaced import replaced
from engine.hooks.sites import Site, SiteName
from engine.hooks.wiring import edited


def sum_of_parts(subject: Subject) -> Measured:
    """resid_post against resid_pre + attn_out + mlp_out, in every layer."""
    names: tuple[SiteName, ...] = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    found: list[tuple[float, str]] = []
    for layer in subject.layers:
        subject.pause()
        pre, attn, mlp, post = _at(subject, [Site(layer=layer, name=name) for name in names])
        found.append((apart(pre.float() + attn.float() + mlp.float(), post), f"in layer {layer}"))
    return largest(found, subject.local)


def chain_of_layers(subject: Subject) -> Measured:
    """resid_pre of every layer against resid_post of the layer below."""
    pairs = [(layer - 1, layer) for layer in subject.layers if layer - 1 in subject.layers]
    found: list[tuple[float, str]] = []
    for below, layer in pairs:
        subject.pause()
        post, pre = _at(subject, [Site(layer=below, name="resid_post"), Site(layer=layer, name="resid_pre")])
        found.append((apart(pre, post), f"between layers {below} and {layer}"))
    return largest(found, 0.0)


def head_is_its_rows(subject: Subject) -> Measured:
    """Logits with a head of z set to zero, against logits with that head's rows of W_O set to zero."""
    found: list[tuple[float, str]] = []
    for layer in _few(subject.layers):
        for head in subject.heads_of(layer)[:1]:
            subject.pause()
            site = Site(layer=layer, name="z", head=head)
            with edited(subject.loaded, [Change(site=site, op="zero")]):
                by_edit = forward(subject.model, subject.first())
            with _without_rows(subject, layer, head):
                by_weights = forward(subject.model, subject.first())
            found.append((apart(by_edit, by_weights), f"at {site.label}"))
    return largest(found, subject.tolerance)


def pattern_times_values(subject: Subject) -> Measured:
    """What z is against each head's pattern times the values of its group, and the sums of the patterns' rows against 1."""
    names: tuple[SiteName, ...] = ("pattern", "v", "z")
    found: list[tuple[float, str]] = []
    for layer in subject.layers:
        subject.pause()
        pattern, v, z = (x.float() for x in _at(subject, [Site(layer=layer, name=name) for name in names]))
        values = v.repeat_interleave(pattern.shape[1] // v.shape[2], dim=2)
        weighed = torch.einsum("bhqk,bkhd->bqhd", pattern, values)
        found.append((apart(weighed, z.unflatten(-1, weighed.shape[2:])), f"in layer {layer}"))
        found.append((float((pattern.sum(-1) - 1).abs().max()), f"in the sums of layer {layer}"))
    return largest(found, subject.local)


def norm_and_head(subject: Subject) -> Measured:
    """Logits against the final norm and the output weights applied to what the last layer wrote."""
    anatomy, head = subject.loaded.anatomy, subject.model.get_output_embeddings()
    if anatomy.final is None or head is None:
        raise NotApplicable("the engine finds no norm behind the last layer, or no output weights.")
    (post,) = _at(subject, [Site(layer=anatomy.n_layers - 1, name="resid_post")])
    with torch.no_grad():
        logits = _capped(subject, head(anatomy.final(post)))
    return Measured(apart(logits[0], subject.alone[0]), subject.local, RELATIVE, "over all positions of prompt 0")


def _capped(subject: Subject, logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, "batch pos vocab"]:
    cap = getattr(subject.model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _at(subject: Subject, sites: list[Site]) -> list[Tensor]:
    """What the longest prompt has at these sites, [batch, pos, width] each."""
    with captured(subject.loaded, sites) as got:
        forward(subject.model, subject.first())
    return [got[site] for site in sites]


def _few(layers: tuple[int, ...]) -> list[int]:
    """The first, the middle and the last."""
    return sorted({layers[0], layers[len(layers) // 2], layers[-1]})


def _without_rows(subject: Subject, layer: int, head: int) -> AbstractContextManager[None]:
    """The output projection of a layer with a head's rows of its weights set to zero, on a copy of that one matrix.

    Raises:
        NotApplicable: the weights are not plain numbers in memory.
    """
    projection = subject.loaded.anatomy.blocks[layer].attn_out_proj
    if projection is None:
        raise NotApplicable("the engine finds no output projection of attention.")
    return replaced(projection, _with_rows_zeroed(projection, subject.loaded.anatomy.head_slice(head)))


def _with_rows_zeroed(projection: nn.Module, rows: slice) -> Callable[[Tensor], Tensor]:
    """What the projection would compute, written out."""
    if type(projection) not in (nn.Linear, Conv1D):
        raise NotApplicable(f"its output projection is a {type(projection).__name__}, whose weights are not plain numbers.")
    weight, bias = projection.weight, projection.bias
    assert isinstance(weight, Tensor)
    if weight.device.type == "meta":
        raise NotApplicable("its weights are kept outside of memory.")
    by_output = weight.clone() if isinstance(projection, nn.Linear) else weight.T.clone()  # Conv1D keeps [in, out]
    by_output[:, rows] = 0
    return lambda z: functional.linear(z, by_output, bias)  # type: ignore[arg-type]
