"""A model in one's hands: look at its tokens and logits, read and change its activations, let it write, ask it a spec."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from engine.errors import ModelError, SpecError
from engine.hooks.batch import Batch, forward
from engine.hooks.bind import bind, hash_of
from engine.hooks.capture import captured
from engine.hooks.edit import Edit, TensorRef, read_edits
from engine.hooks.reference import PromptReference, sites_of
from engine.hooks.sites import Site
from engine.hooks.wiring import edited
from engine.lab.captures import Got, as_sites
from engine.lab.own_edit import own_edit
from engine.lab.prompts import Prompts, as_texts, pieces, token_rows
from engine.lab.runs import AskedFor, Finished, run_on
from engine.lab.site_table import SiteTable, site_table
from engine.lab.watch import Mark, watch_of
from engine.lab.writing import Writing, write
from engine.models import loading
from engine.models.loading import LoadedModel
from engine.settings import read_settings
from engine.spec import ModelRef
from engine.spec.any import explain

Edits = Edit | Mapping[str, Any] | Sequence[Edit | Mapping[str, Any]]
"""One edit or several, as values or as mappings (as from JSON)."""
Sites = Site | str | Sequence[Site | str]
"""One site or several, as values or by hook name."""


class Model:
    """A causal language model with its tokenizer.

    `edit` and `capture` are blocks: they nest in any order, hold the model's lock, so that no other thread's work is touched, and leave
    nothing behind. Captures see all edits that are in place.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        """Takes a model that was loaded."""
        self.loaded = loaded
        self._kept = dict[str, Tensor]()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own."""
        return self.loaded.tokenizer

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return self.loaded.device

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return self.loaded.anatomy.n_layers

    @property
    def n_heads(self) -> int:
        """Query heads per layer; 0 where heads cannot be told apart."""
        return self.loaded.anatomy.n_heads

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.loaded.anatomy.d_model

    def to_tokens(self, text: str) -> list[int]:
        """Token ids of a text, as the tokenizer makes them by itself; nothing is put in front of them."""
        return token_rows(self.loaded, text)[0]

    def to_str_tokens(self, prompt: str | Sequence[int]) -> list[str]:
        """The text of each token of a text, or of each of some ids."""
        return pieces(self.loaded, token_rows(self.loaded, prompt)[0])

    def logits(self, prompts: Prompts, *, grad: bool = False) -> Float[Tensor, "batch pos vocab"]:
        """Logits of a forward pass, with whatever edits are in place.

        Args:
            prompts: texts or token ids. Shorter ones are padded on the right, where their logits mean nothing.
            grad: keep what gradients need, inside `with model.capture(..., grad=True)`, where they begin.

        Raises:
            ModelError: gradients were asked for, but nothing here has any.
        """
        batch = Batch.of(token_rows(self.loaded, prompts), device=self.device)
        with self.loaded.lock:
            logits = forward(self.loaded.model, batch, grad=grad)
        if grad and not logits.requires_grad:
            raise ModelError(
                "gradients were asked for, but the weights are frozen and nothing else has any.",
                next_step="Capture with grad=True around it; gradients begin at the embeddings then.",
            )
        return logits

    @contextmanager
    def edit(
        self,
        edits: Edits | Callable[[Tensor], Tensor],
        *,
        at: Sites | None = None,
        tensors: Mapping[str, Tensor] | None = None,
        reference: Prompts | None = None,
    ) -> Iterator[None]:
        """Inside the block every forward pass of the model is edited.

        Args:
            edits: what is changed: edits as data, or a function of your own from tensor to tensor. A run that a function was in
                place for is marked as custom.
            at: where a function works; edits say it themselves.
            tensors: tensors by hash, for values that are a `TensorRef`; those of `keep` are known.
            reference: prompts whose activations `mean` and `resample` put in place, measured as the model is when the block begins.

        Raises:
            SpecError: an edit is wrong, or does not fit the model.
            UnknownAnatomy: the model has no such site.
        """
        if callable(edits):
            with own_edit(self.loaded, edits, as_sites(at or [])):
                yield
            return
        if at is not None:
            raise SpecError("'at' is for a function; edits that are data say in 'site' where they work.", next_step="Leave 'at' out.")
        wanted = _read(edits)
        with self.loaded.lock:
            changes = bind(wanted, self.loaded, tensors={**self._kept, **(tensors or {})}, reference=self._reference(wanted, reference))
            with edited(self.loaded, changes), watch_of(self.loaded).marked(Mark(edits=wanted)):
                yield

    @contextmanager
    def capture(self, sites: Sites, *, grad: bool = False) -> Iterator[Got]:
        """What the forward passes inside the block have at these sites; the last pass wins.

        Args:
            sites: one or several, by hook name or as `Site`, which can name a head.
            grad: keep what gradients need; then `model.logits(..., grad=True)`, `backward()` on a number of it, and `got.grad(site)`.

        Raises:
            SpecError: there is no such site, or the model has no such layer or head.
            UnknownAnatomy: the model has no such site.
        """
        with captured(self.loaded, as_sites(sites), grad=grad) as got:
            yield Got(got)

    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int = 20,
        edits: Edits = (),
        variants: Sequence[Edits] | None = None,
        capture: Sites = (),
        reference: Prompts | None = None,
        **how: Any,
    ) -> Writing:
        """What the model writes behind the prompts, with whatever edits are in place; greedily unless `sampling` says otherwise.

        Args:
            prompts: texts or token ids, of any lengths.
            max_new_tokens: tokens behind each prompt, at most.
            edits: what is changed in every variant.
            variants: further edits; every prompt is written on under each of them, with the same draws, so they can be compared.
            capture: sites to read on the way.
            reference: prompts whose activations `mean` and `resample` put in place.
            how: sampling, stop, cancelled and use_cache, as `engine.generation.generate` takes them.

        Raises:
            SpecError: a prompt or an edit does not fit the model.
        """
        rows, wanted = token_rows(self.loaded, prompts), _read(edits)
        each = None if variants is None else [_read(variant) for variant in variants]
        shown = as_texts(self.loaded, prompts)
        with self.loaded.lock:
            measured = self._reference([*wanted, *(edit for variant in each or () for edit in variant)], reference)
            further: dict[str, Any] = {"capture": as_sites(capture), "tensors": self._kept, "reference": measured, **how}
            return write(self.loaded, rows, shown, max_new_tokens=max_new_tokens, edits=wanted, variants=each, **further)

    def sites(self) -> SiteTable:
        """Which sites the model has, and why it lacks the others."""
        return site_table(self.loaded)

    def keep(self, tensor: Tensor) -> TensorRef:
        """A name for a tensor that is too large to stand in an edit itself; this model knows it from now on."""
        kept = tensor.detach().cpu().clone()
        ref = TensorRef(sha256=hash_of(kept), shape=tuple(kept.shape))
        self._kept[ref.sha256] = kept
        return ref

    def run(self, spec: AskedFor, out: Path | str | None = None, **options: Any) -> Finished:
        """The finished run of a spec on this model; as `philab.run`, whose model is this one where the spec names none.

        Raises:
            SpecError: the spec is about another model.
        """
        return run_on(self.loaded, spec, out=out, **options)

    def _reference(self, edits: Sequence[Edit], prompts: Prompts | None) -> PromptReference | None:
        sites = sites_of(edits)
        if prompts is None or not sites:
            return None
        for site in sites:
            self.loaded.anatomy.check(site)
        return PromptReference.measured(self.loaded, token_rows(self.loaded, prompts), sites)

    def __repr__(self) -> str:
        """The model in one line."""
        loaded, precision = self.loaded, str(self.loaded.model.dtype).removeprefix("torch.")
        heads = f"{self.n_heads} heads" if self.n_heads else "heads that cannot be told apart"
        return (
            f"<philab model '{loaded.ref.id}': {type(loaded.model).__name__}, {self.n_layers} layers, {heads}, d_model {self.d_model}, "
            f"{loaded.ref.quantization or precision} on {self.device}>"
        )


def load_model(
    model: str | ModelRef,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "float32",
    attention: str = "default",
    quantization: str | None = None,
    **where: Any,
) -> Model:
    """The model.

    Args:
        model: a shipped one, a short name such as `phi-2`, a Hugging Face id, or a folder; or a `ModelRef`, which says all else as well.
        revision: commit of the Hugging Face repository.
        dtype: precision of the weights: float32, float16 or bfloat16.
        attention: attention kernel: default, eager or sdpa.
        quantization: int8, nf4 or fp4, to store the weights in fewer bits.
        where: device, device_map and so on, as `engine.models.loading.load_model` takes them; the device of the settings when left out.

    Raises:
        SpecError: an argument is wrong.
        UnknownModel: there is no such model.
        ModelError: its files cannot be used; `ModelTooLarge` if they do not fit.
    """
    if not {"device", "device_map"} & set(where):
        where["device"] = read_settings().device
    if isinstance(model, ModelRef):
        return Model(loading.load_model(model, **where))
    asked = {"id": str(model), "revision": revision, "dtype": str(dtype).removeprefix("torch."), "attention": attention}
    try:
        ref = ModelRef.model_validate({**asked, "quantization": quantization})
    except ValidationError as wrong:
        raise SpecError(explain(wrong)) from wrong
    return Model(loading.load_model(ref, **where))


def _read(edits: Edits) -> tuple[Edit, ...]:
    several = [edits] if isinstance(edits, Edit | Mapping) else list(edits)
    try:
        return read_edits(several)
    except ValidationError as wrong:
        raise SpecError(f"an edit is wrong: {explain(wrong)}") from wrong
