"""Ablation: what does the model lose when a head (or a whole attention or MLP output) is taken away?"""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from engine.spec.base import DatasetRef, Spec

AblationSite = Literal["z", "attn_out", "mlp_out"]
AblationMode = Literal["zero", "mean", "resample"]
Metric = Literal["loss", "target_loss", "logit_diff", "accuracy"]

METRIC_UNITS: dict[Metric, str] = {"loss": "nats", "target_loss": "nats", "logit_diff": "logits", "accuracy": "share"}
HIGHER_IS_BETTER: dict[Metric, bool] = {"loss": False, "target_loss": False, "logit_diff": True, "accuracy": True}

Indices = Annotated[tuple[Annotated[int, Field(ge=0, le=10_000)], ...], Field(min_length=1, max_length=10_000)]


class AblationSpec(Spec):
    """Take away one component at a time and measure what changes: metric(ablated) − metric(clean), per prompt."""

    kind: Literal["ablation"] = "ablation"
    site: Annotated[
        AblationSite,
        Field(description="What is taken away: 'z' = single attention heads; 'attn_out' or 'mlp_out' = a whole layer's output."),
    ] = "z"
    layers: Annotated[Literal["all"] | Indices, Field(description="Layers to go through.")] = "all"
    heads: Annotated[Literal["all"] | Indices, Field(description="Heads to go through in each layer; only for site 'z'.")] = "all"
    mode: Annotated[
        AblationMode,
        Field(
            description="What stands in: zeros, the mean over the reference slice, or the activation of a prompt drawn from it "
            "(at the same position)."
        ),
    ] = "zero"
    reference: Annotated[
        DatasetRef | None, Field(description="Slice of prompts behind modes 'mean' and 'resample'; the same for all shards of a task.")
    ] = None
    metric: Annotated[
        Metric,
        Field(
            description="'loss': mean next-token loss over the prompt. 'target_loss': the same over the target tokens. 'logit_diff': "
            "logit of the target minus that of the distractor. 'accuracy': 1 where the target has the larger logit, else 0."
        ),
    ] = "loss"
    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, le=2**31 - 1)], ...],
        Field(min_length=1, max_length=32, description="Seeds of the draws of mode 'resample'; effects are averaged over them."),
    ] = (0,)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.mode == "zero" and self.reference is not None:
            raise ValueError("mode 'zero' uses no reference slice; leave 'reference' out or choose 'mean' or 'resample'")
        if self.mode != "zero" and self.reference is None:
            raise ValueError(f"mode '{self.mode}' needs a 'reference' slice, for example {{name: ..., rows: {{start: 0, stop: 64}}}}")
        if self.mode != "resample" and self.seeds != (0,):
            raise ValueError(f"mode '{self.mode}' draws nothing, so 'seeds' has no meaning; leave it out")
        if self.site != "z" and self.heads != "all":
            raise ValueError(f"site '{self.site}' has no heads; leave 'heads' out or choose site 'z'")
        return self._without_repeats()

    def _without_repeats(self) -> Self:
        for field in ("layers", "heads", "seeds"):
            chosen = getattr(self, field)
            if chosen != "all" and len(set(chosen)) != len(chosen):
                raise ValueError(f"'{field}' names a number twice: {list(chosen)}")
        return self

    @property
    def unit(self) -> str:
        """Unit of the metric and of every effect."""
        return METRIC_UNITS[self.metric]

    @property
    def datasets(self) -> Mapping[str, DatasetRef]:
        """The prompts, and the reference slice where there is one."""
        return {"dataset": self.dataset, **({"reference": self.reference} if self.reference else {})}

    @property
    def drawn_with(self) -> tuple[int, ...]:
        """The seeds."""
        return self.seeds
