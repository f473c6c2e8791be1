"""The files of an ablation: each prompt's effects, the edits as data, and the means of the reference slice."""

import json

import numpy as np
import torch
from safetensors.numpy import save

from engine.experiments.ablation_work import Work
from engine.experiments.stand_ins import Reference, edit_of
from engine.result import ArtifactRef

SAFETENSORS = "application/x-safetensors"


def store_effects(work: Work, clean: np.ndarray, effects: np.ndarray) -> ArtifactRef:
    """`effects.safetensors`: the clean metric [prompts] and the effects [prompts, sites]."""
    about = {
        "metric": work.spec.metric,
        "unit": work.spec.unit,
        "prompts": [prompt.id for prompt in work.prompts],
        "sites": [site.model_dump(mode="json") for site in work.sites],
    }
    tensors = {"effects": effects.astype(np.float32), "clean": clean.astype(np.float32)}
    return work.recorder.artifact("effects.safetensors", _packed(tensors, about), SAFETENSORS)


def store_edits(work: Work) -> ArtifactRef:
    """`edits.json`: the edits in the order of the effects' sites, once per seed; `engine.hooks.edit.read_edits` reads them."""
    edits = [edit_of(site, work.spec.mode, seed) for site in work.sites for seed in work.spec.seeds]
    data = json.dumps([edit.model_dump(mode="json", exclude_defaults=True) for edit in edits])
    return work.recorder.artifact("edits.json", data.encode(), "application/json")


def store_reference(work: Work, reference: Reference) -> ArtifactRef:
    """`reference.safetensors`: the means [layers, width] behind mode 'mean'; for 'resample' they describe the slice that was drawn from."""
    anatomy = work.loaded.anatomy
    table = torch.stack([reference.means[layer] for layer in work.layers]).numpy()
    if work.spec.site == "z":
        table = table.reshape(len(work.layers), anatomy.n_heads, anatomy.d_head)
    about = {"site": work.spec.site, "layers": list(work.layers), "tokens": reference.tokens}
    return work.recorder.artifact("reference.safetensors", _packed({"means": table}, about), SAFETENSORS)


def _packed(tensors: dict[str, np.ndarray], about: dict[str, object]) -> bytes:
    """Safetensors bytes; one metadata key only, because several would be written in random order and change the hash."""
    return save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, {"about": json.dumps(about, sort_keys=True)})
