"""Weights in 4 and 8 bits, against the formulas of QLoRA and LLM.int8 written out here."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from engine.errors import ModelError
from engine.hooks.batch import Batch
from engine.hooks.change import Change
from engine.hooks.dense_weight import dense_weight
from engine.hooks.sites import Site
from engine.hooks.sweep import naive_sweep, sweep
from engine.models.loading import LoadedModel, forget_models, load_model
from engine.models.quantization import quantization_options
from engine.spec import ModelRef
from tests.plugin_engine import save_model, tiny_model

CPU = torch.device("cpu")
WIDE = {"hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.05}
MODELS = {"llama": WIDE, "gpt2": {"n_embd": 128, "n_inner": 256, "initializer_range": 0.05}, "phi": WIDE}
"""Widths that blocks of 64 fit into."""
IDS = torch.tensor([[5, 9, 2, 7, 11, 3], [6, 1, 13, 30, 2, 40]])
BLOCK = 64


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    forget_models()
    above = tmp_path_factory.mktemp("wide")
    return {family: save_model(tiny_model(family, **values), above / family) for family, values in MODELS.items()}


def _normal_floats() -> Tensor:
    """The 16 values of nf4: quantiles of a normal distribution, scaled to [-1, 1] (Dettmers et al. 2023, appendix E)."""
    quantile = torch.distributions.Normal(0.0, 1.0).icdf
    above = quantile(torch.linspace(0.9677083, 0.5, 9, dtype=torch.float64)[:-1])
    below = -quantile(torch.linspace(0.9677083, 0.5, 8, dtype=torch.float64)[:-1])
    values = torch.cat([above, below, torch.zeros(1, dtype=torch.float64)]).sort().values
    return (values / values.abs().max()).float()


def _small_floats() -> Tensor:
    """The 16 values of fp4: a sign, two bits of exponent, one of mantissa; the smallest is 1/192."""
    sizes = torch.tensor([0.0, 1 / 192, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1.0])
    return torch.cat([-sizes, sizes])


CODES: dict[str, Callable[[], Tensor]] = {"nf4": _normal_floats, "fp4": _small_floats}


def _rounded(weight: Tensor, code: Tensor) -> Tensor:
    """Each block of 64 weights divided by its largest, then the nearest code."""
    blocks = weight.reshape(-1, BLOCK)
    largest = blocks.abs().amax(-1, keepdim=True)
    return (code[(blocks / largest).unsqueeze(-1).sub(code).abs().argmin(-1)] * largest).reshape(weight.shape)


def _projections(model: PreTrainedModel) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and name != "lm_head"]


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("family", MODELS)
def test_four_bits_are_the_nearest_codes_and_nothing_else(folders: dict[str, Path], family: str, kind: str) -> None:
    expected, plain = tiny_model(family, **MODELS[family]), tiny_model(family, **MODELS[family])(IDS).logits
    for module in _projections(expected):
        weight = module.weight.data
        module.weight.data = (
            _rounded(weight.T.contiguous(), CODES[kind]()).T if isinstance(module, Conv1D) else _rounded(weight, CODES[kind]())
        )
    loaded = load_model(ModelRef(id=str(folders[family]), quantization=kind), device=CPU)
    logits = loaded.model(IDS).logits
    torch.testing.assert_close(logits, expected(IDS).logits, atol=1e-4, rtol=0)
    assert 1e-3 < (logits - plain).abs().max() < plain.abs().max()


@pytest.mark.parametrize("family", MODELS)
def test_eight_bits_round_rows_of_weights_and_of_activations(folders: dict[str, Path], family: str) -> None:
    """One projection at a time: what one rounds the other way, the next ones make larger."""
    plain = tiny_model(family, **MODELS[family])
    loaded = load_model(ModelRef(id=str(folders[family]), quantization="int8"), device=CPU)
    formulas = {name: _in_eight_bits(module) for name, module in plain.named_modules() if module in _projections(plain)}
    off = dict[str, float]()

    def compare(name: str, _module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        off[name] = float((output - formulas[name](args[0])).abs().max())

    with ExitStack() as stack:
        for name in formulas:
            stack.callback(loaded.model.get_submodule(name).register_forward_hook(partial(compare, name)).remove)
        logits = loaded.model(IDS).logits
    assert set(off) == set(formulas)
    assert max(off.values()) < 2e-4
    expected = plain(IDS).logits
    assert 1e-3 < (logits - expected).abs().max() < 0.1 * expected.abs().max()


def _in_eight_bits(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """LLM.int8 without outliers (Dettmers et al. 2022, eq. 5): both sides as integers up to 127 by row, multiplied, scaled back."""
    weight = (module.weight.data.T if isinstance(module, Conv1D) else module.weight.data).half().float()
    rows = weight.abs().amax(-1)
    integers = (weight * (127 / rows[:, None])).round()

    def forward(x: Tensor) -> Tensor:
        x = x.half().float()
        assert x.abs().max() < 6, "an outlier would be computed apart"
        largest = x.abs().amax(-1, keepdim=True)
        product = (x * (127 / largest)).round() @ integers.T
        return product * largest * rows / 127**2 + (0 if module.bias is None else module.bias)

    return forward


@pytest.mark.parametrize(("kind", "tolerance"), [("nf4", 1e-5), ("int8", 0.02)])
def test_a_quantised_model_has_all_sites_and_replays(folders: dict[str, Path], kind: str, tolerance: float) -> None:
    loaded = load_model(ModelRef(id=str(folders["llama"]), quantization=kind), device=CPU)
    assert (loaded.anatomy.n_heads, loaded.anatomy.d_model, loaded.anatomy.exchangeable) == (4, 128, True)
    batch = Batch.of(IDS.tolist())
    variants = [[Change(site=Site(layer=layer, name="z", head=head), op="zero")] for layer in range(3) for head in range(4)]
    values = torch.cat([part.values for part in sweep(loaded, batch, variants, _LastLogit())])
    torch.testing.assert_close(values, naive_sweep(loaded, batch, variants, _LastLogit()), atol=tolerance, rtol=0)


class _LastLogit:
    """The logit of token 7 at the last position."""

    positions = torch.tensor([5])

    def __call__(self, logits: Tensor) -> Tensor:
        return logits[:, -1, 7]


def test_dense_weights_are_those_that_multiply(llama: LoadedModel) -> None:
    for loaded in (llama, None):
        model = loaded.model if loaded else tiny_model("gpt2")
        for module in _projections(model):
            x = torch.linspace(-1, 1, 2 * dense_weight(module).shape[0]).view(2, -1)
            bias = 0 if module.bias is None else module.bias
            torch.testing.assert_close(module(x), x @ dense_weight(module) + bias, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "bits"), [("nf4", "4 bits"), ("int8", "8 bits")])
def test_quantised_weights_are_not_given_as_dense_ones(folders: dict[str, Path], kind: str, bits: str) -> None:
    loaded = load_model(ModelRef(id=str(folders["llama"]), quantization=kind), device=CPU)
    projection = loaded.anatomy.blocks[1].attn_out_proj
    assert projection is not None
    with pytest.raises(ModelError, match=rf"W_O of layer 1 is stored in {bits}.*Load the model without quantization, or ask for site 'z'"):
        dense_weight(projection, "W_O of layer 1")


def test_what_has_no_matrix_says_so(llama: LoadedModel) -> None:
    with pytest.raises(ModelError, match=r"the projection \(SiLU"):
        dense_weight(llama.anatomy.blocks[0].mlp.act_fn)  # pyright: ignore[reportOptionalMemberAccess]


def test_without_bitsandbytes_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match=r"'nf4' of 'm' needs the package bitsandbytes, which is not installed.*pip install bitsandbytes"):
        quantization_options(ModelRef(id="m", quantization="nf4"), CPU)
    assert quantization_options(ModelRef(id="m"), CPU) == {}


def test_a_device_that_bitsandbytes_lacks_is_refused() -> None:
    with pytest.raises(ModelError, match=r"'int8' does not work on meta; bitsandbytes has .*cpu"):
        quantization_options(ModelRef(id="m", quantization="int8"), torch.device("meta"))


def test_weights_are_not_quantised_twice(folders: dict[str, Path], tmp_path: Path) -> None:
    loaded = load_model(ModelRef(id=str(folders["llama"]), quantization="nf4"), device=CPU)
    folder = tmp_path / "small"
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="is stored in fewer bits already, so quantization 'int8' cannot be applied"):
        load_model(ModelRef(id=str(folder), quantization="int8"), device=CPU)
    again = load_model(ModelRef(id=str(folder)), device=CPU)
    torch.testing.assert_close(again.model(IDS).logits, loaded.model(IDS).logits, atol=1e-5, rtol=0)
