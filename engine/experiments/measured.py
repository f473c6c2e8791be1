"""What a sweep has measured so far: kept as bytes, so that a run that was stopped goes on where it was."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

DIGEST_BYTES = 32


class Unusable(Exception):
    """Kept bytes cannot be gone on from; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The metric of prompts and variants.

    Attributes:
        clean: of the unedited model, [prompts]; NaN where it is not known yet.
        changed: of each variant, [prompts, variants]; NaN likewise.
    """

    clean: np.ndarray
    changed: np.ndarray

    @classmethod
    def nothing(cls, *, prompts: int, variants: int) -> Self:
        """Nothing is known yet."""
        return cls(clean=np.full(prompts, np.nan, np.float32), changed=np.full((prompts, variants), np.nan, np.float32))

    def missing(self, rows: Sequence[int]) -> list[int] | None:
        """Variants that are not known for all these prompts; None if all of them are, and the unedited model too."""
        variants = np.flatnonzero(np.isnan(self.changed[rows]).any(axis=0)).tolist()
        return variants if variants or np.isnan(self.clean[rows]).any() else None

    def keep(self, rows: Sequence[int], variants: Sequence[int], values: np.ndarray) -> np.ndarray:
        """Takes in the values [variants, rows]; returns how many of each variant's are new."""
        places = np.ix_(rows, variants)
        new = np.isnan(self.changed[places]).sum(axis=0)
        self.changed[places] = values.T
        return new

    def effects(self, rows: Sequence[int] | slice = slice(None), *, seeds: int) -> np.ndarray:
        """[prompts, sites]: how much each site's variants change the metric, averaged over seeds, in double precision."""
        difference = self.changed[rows].astype(np.float64) - self.clean[rows].astype(np.float64)[:, None]
        return difference.reshape(len(difference), -1, seeds).mean(axis=2)

    def as_bytes(self, identity: Mapping[str, str]) -> bytes:
        """All of it, with what it belongs to, behind a hash that tells damage."""
        about = np.frombuffer(json.dumps(dict(identity), sort_keys=True).encode(), np.uint8)
        body = save({"about": about, "clean": self.clean, "changed": self.changed})
        return hashlib.sha256(body).digest() + body

    def restored(self, data: bytes, identity: Mapping[str, str]) -> Self:
        """What was kept as bytes, if it belongs to the same and has this one's shape.

        Raises:
            Unusable: it does not, or it is damaged.
        """
        tensors = _tensors(data)
        _refuse_other(_about(tensors.get("about")), identity)
        return type(self)(clean=_like(tensors.get("clean"), self.clean), changed=_like(tensors.get("changed"), self.changed))


def _tensors(data: bytes) -> dict[str, np.ndarray]:
    digest, body = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise Unusable("it is damaged")
    try:
        return load(body)
    except (SafetensorError, ValueError, KeyError, TypeError) as wrong:
        raise Unusable("it is not one of ours") from wrong


def _about(tensor: np.ndarray | None) -> dict[str, object]:
    try:
        about = json.loads(tensor.tobytes()) if tensor is not None else None
    except (ValueError, RecursionError) as wrong:
        raise Unusable("it is not one of ours") from wrong
    if not isinstance(about, dict):
        raise Unusable("it is not one of ours")
    return about


def _refuse_other(about: Mapping[str, object], identity: Mapping[str, str]) -> None:
    """Numbers of another model, dataset or version are not mixed with new ones."""
    for name, mine in identity.items():
        if about.get(name) != mine:
            raise Unusable(f"its {name} is {str(about.get(name))[:40]}, not {mine[:40]}")


def _like(tensor: np.ndarray | None, expected: np.ndarray) -> np.ndarray:
    if tensor is None or tensor.shape != expected.shape or tensor.dtype != expected.dtype or np.isinf(tensor).any():
        raise Unusable("its numbers do not fit")
    return tensor.copy()
