"""The shapes in the engine's signatures are checked while the tests run."""

import pytest
import torch
from jaxtyping import TypeCheckError

from engine.hooks.heads import contributions


def test_a_tensor_of_the_wrong_shape_is_caught() -> None:
    weight = torch.zeros(4, 8, 32)
    assert contributions(torch.zeros(2, 3, 32), weight).shape == (2, 3, 4, 32)
    with pytest.raises(TypeCheckError):
        contributions(torch.zeros(2, 3, 5, 32), weight)
