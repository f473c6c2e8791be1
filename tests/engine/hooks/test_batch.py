from typing import Literal

import pytest
import torch

from engine.hooks.batch import Batch, forward
from engine.models.loading import LoadedModel

PROMPTS = [[5, 9, 2, 7, 11, 3, 8, 4], [6, 1, 13]]


def test_positions_count_tokens_wherever_the_padding_is() -> None:
    assert Batch.of(PROMPTS, side="left").position_ids[1].tolist() == [0, 0, 0, 0, 0, 0, 1, 2]
    assert Batch.of(PROMPTS, side="right").position_ids[1, :3].tolist() == [0, 1, 2]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(loaded: LoadedModel, side: Literal["left", "right"]) -> None:
    alone = forward(loaded.model, Batch.of(PROMPTS[1:]))[0]
    padded = forward(loaded.model, Batch.of(PROMPTS, pad=17, side=side))[1]
    torch.testing.assert_close(padded[-3:] if side == "left" else padded[:3], alone, atol=1e-5, rtol=1e-5)


def test_the_clean_run_is_the_plain_model_bit_for_bit(loaded: LoadedModel) -> None:
    batch = Batch.of(PROMPTS)
    plain = loaded.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids).logits
    assert torch.equal(forward(loaded.model, batch), plain)
    assert torch.equal(forward(loaded.model, Batch.of(PROMPTS[:1])), loaded.model(torch.tensor(PROMPTS[:1])).logits)


def test_logits_at_some_positions_only(loaded: LoadedModel) -> None:
    batch, positions = Batch.of(PROMPTS), torch.tensor([2, 7])
    torch.testing.assert_close(forward(loaded.model, batch, positions), forward(loaded.model, batch)[:, positions], atol=1e-6, rtol=1e-6)


def test_a_repeated_batch_is_the_batch_again() -> None:
    batch = Batch.of(PROMPTS)
    assert torch.equal(batch.repeated(3).input_ids[2:4], batch.input_ids)
    assert batch.at(torch.tensor([1, 4])).input_ids.tolist() == [[9, 11], [1, 0]]
