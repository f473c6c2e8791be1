"""What was measured survives as bytes, and only as what it was."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from engine.experiments.measured import Measured, Unusable

IDENTITY = {"spec": "a" * 64, "model": "b" * 64}


def half() -> Measured:
    measured = Measured.nothing(prompts=3, variants=4)
    measured.clean[[0, 2]] = 1.5
    measured.keep([0, 2], [1, 3], np.arange(4, dtype=np.float32).reshape(2, 2))
    return measured


def nothing() -> Measured:
    return Measured.nothing(prompts=3, variants=4)


def test_what_is_missing_is_known() -> None:
    measured = half()
    assert measured.missing([0, 2]) == [0, 2]
    assert measured.missing([0, 1]) == [0, 1, 2, 3]
    assert measured.keep([0, 2], [0, 1], np.zeros((2, 2))).tolist() == [2, 0]
    measured.keep([0, 2], [2], np.zeros((1, 2)))
    assert measured.missing([0, 2]) is None


def test_effects_are_differences_averaged_over_seeds() -> None:
    measured = half()
    measured.keep([0, 2], [0, 2], np.full((2, 2), 7.0))
    expected = [[np.mean([7 - 1.5, 0 - 1.5]), np.mean([7 - 1.5, 2 - 1.5])], [np.mean([7 - 1.5, 1 - 1.5]), np.mean([7 - 1.5, 3 - 1.5])]]
    assert measured.effects([0, 2], seeds=2).tolist() == expected


def test_it_comes_back_as_it_was() -> None:
    back = nothing().restored(half().as_bytes(IDENTITY), IDENTITY)
    np.testing.assert_array_equal(back.changed, half().changed)
    np.testing.assert_array_equal(back.clean, half().clean)
    back.clean[1] = 0  # it can be gone on with


@pytest.mark.parametrize("name", IDENTITY)
def test_that_of_another_run_is_refused(name: str) -> None:
    with pytest.raises(Unusable, match=f"its {name} is other, not"):
        nothing().restored(half().as_bytes({**IDENTITY, name: "other"}), IDENTITY)


def test_that_of_another_shape_is_refused() -> None:
    with pytest.raises(Unusable, match="do not fit"):
        Measured.nothing(prompts=3, variants=5).restored(half().as_bytes(IDENTITY), IDENTITY)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_words(data: bytes) -> None:
    for behind in (data, hashlib.sha256(data).digest() + data):
        with pytest.raises(Unusable):
            nothing().restored(behind, IDENTITY)


@given(st.data())
def test_a_single_wrong_byte_is_noticed(data: st.DataObject) -> None:
    good = bytearray(half().as_bytes(IDENTITY))
    good[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Unusable, match="damaged"):
        nothing().restored(bytes(good), IDENTITY)


def sealed(**tensors: np.ndarray) -> bytes:
    body = save(tensors)
    return hashlib.sha256(body).digest() + body


def text(value: str) -> np.ndarray:
    return np.frombuffer(value.encode(), np.uint8)


@pytest.mark.parametrize(
    "tensors",
    [
        {"clean": np.zeros(3, np.float32)},
        {"about": text("[" * 100_000)},
        {"about": text("[]")},
        {"about": text('{"spec": ' + "1" * 5000 + "}")},
        {"about": text(json.dumps(IDENTITY)), "clean": np.zeros(3, np.float32)},
        {"about": text(json.dumps(IDENTITY)), "clean": np.zeros(3, np.float32), "changed": np.full((3, 4), np.inf, np.float32)},
        {"about": text(json.dumps(IDENTITY)), "clean": np.zeros(3, np.float64), "changed": np.zeros((3, 4), np.float32)},
    ],
)
def test_what_somebody_else_made_is_refused_in_words(tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(Unusable):
        nothing().restored(sealed(**tensors), IDENTITY)
