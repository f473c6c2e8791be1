import json
import math

import pytest
import torch

from engine.errors import DatasetError
from engine.models.loading import LoadedModel
from engine.telemetry import describe_points, measure_telemetry
from engine.text.datasets import Row
from tests.plugin_engine import TEXTS

ROWS = [Row(id=str(i), text=text) for i, text in enumerate(TEXTS)]


def test_points_that_fill_directions_alike_use_all_of_them() -> None:
    points = torch.cat([torch.eye(6), -torch.eye(6)]) * 3
    got = describe_points(points)
    assert got == pytest.approx({"mean_norm": 3.0, "participation_ratio": 6.0, "effective_rank": 6.0})


def test_a_known_spectrum_gives_the_formulae() -> None:
    scale = torch.tensor([2.0, 1.0])
    points = torch.cat([torch.eye(2), -torch.eye(2)]) * scale
    p = [0.8, 0.2]
    got = describe_points(points)
    assert got["participation_ratio"] == pytest.approx(1 / (0.8**2 + 0.2**2))
    assert got["effective_rank"] == pytest.approx(math.exp(-sum(x * math.log(x) for x in p)))


def test_points_on_a_line_have_rank_one_and_a_point_none() -> None:
    line = torch.linspace(-1, 1, 9)[:, None] * torch.ones(4)
    assert describe_points(line)["participation_ratio"] == pytest.approx(1)
    assert describe_points(torch.ones(5, 4))["effective_rank"] == 0


def test_telemetry_is_the_plain_model_s_stream_without_first_tokens(llama: LoadedModel) -> None:
    got = measure_telemetry(llama, ROWS)
    states = [llama.model.model(torch.tensor([llama.tokenizer(text)["input_ids"]])) for text in TEXTS]
    assert got["tokens"] == sum(state.last_hidden_state.shape[1] - 1 for state in states)
    kept: list[torch.Tensor] = []
    handle = llama.model.model.layers[1].register_forward_hook(lambda _module, _args, output: kept.append(output[0, 1:]))
    for text in TEXTS:
        llama.model(torch.tensor([llama.tokenizer(text)["input_ids"]]))
    handle.remove()
    points = torch.cat(kept).double()
    spectrum = torch.linalg.svdvals(points - points.mean(0)) ** 2
    expected = {
        "layer": 1,
        "mean_norm": points.norm(dim=1).mean().item(),
        "participation_ratio": (spectrum.sum() ** 2 / (spectrum**2).sum()).item(),
    }
    assert {key: got["layers"][1][key] for key in expected} == pytest.approx(expected, rel=1e-4)
    assert got["schema_version"] == 1
    assert got["dropped"] == "position 0 of each prompt"
    json.dumps(got, allow_nan=False)


def test_telemetry_is_bounded(llama: LoadedModel) -> None:
    assert measure_telemetry(llama, ROWS, max_tokens=20)["tokens"] == 20


def test_too_little_text_is_refused(llama: LoadedModel) -> None:
    with pytest.raises(DatasetError, match="a covariance needs 2"):
        measure_telemetry(llama, [Row(id="a", text="the cat")])
