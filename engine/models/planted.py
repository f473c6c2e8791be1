"""The weights of `planted-induction`, written by code, so that the right answer of a head ablation is known exactly.

A GPT-2 with two layers of four heads. The residual stream has four blocks of `D_HEAD` coordinates: token, position, previous token,
next token. One head in layer 0 copies the previous token into the third block; one head in layer 1 looks for the place whose previous
token is the present one, and copies the token found there into the fourth block, the only one that the unembedding reads. All other
weights are small noise.

Source: the circuit is that of Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", section "Induction heads".
"""

import math
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, PreTrainedTokenizerFast

_WORDS = "ash bay cup dew elm fog gem hut ink jar kin log map net oak pin ray sun tin urn van wax yam zip"
WORDS = tuple(_WORDS.split())
END = "<|end|>"
D_HEAD, N_HEADS, N_LAYERS = 48, 4, 2
D_MODEL = D_HEAD * N_HEADS
PREVIOUS_TOKEN_HEAD = (0, 1)
INDUCTION_HEAD = (1, 2)
SHARPNESS = 30.0
"""Attention score, in nats, of the place looked for above every other place."""
LOGIT_GAP = 300.0
"""Logit of the predicted token above all others."""
NOISE = 3e-3
"""Largest weight of all that is not planted; enough to be seen, too little to matter."""

TOKEN, POSITION, PREVIOUS, NEXT = (slice(i * D_HEAD, (i + 1) * D_HEAD) for i in range(4))
START_FLAG = D_HEAD - 1
"""Coordinate of the induction head's keys that marks the first place, which has no previous token. No word has this number."""

Weights = dict[str, Tensor]


def planted_weights() -> Weights:
    """All weights by their name in `GPT2LMHeadModel`; equal to the last bit on every machine."""
    weights = _noise()
    eye = torch.eye(D_HEAD)
    weights["transformer.wte.weight"] = torch.zeros(len(WORDS) + 1, D_MODEL)
    weights["transformer.wte.weight"][:, TOKEN] = eye[: len(WORDS) + 1]
    weights["transformer.wpe.weight"] = torch.zeros(D_HEAD, D_MODEL)
    weights["transformer.wpe.weight"][:, POSITION] = eye
    _plant_previous_token(weights, eye)
    _plant_induction(weights, eye)
    weights["lm_head.weight"] = torch.zeros(len(WORDS) + 1, D_MODEL)
    weights["lm_head.weight"][:, NEXT] = eye[: len(WORDS) + 1] * (LOGIT_GAP / _seen(4))
    return weights


def _noise() -> Weights:
    """Every weight of the model: layer norms that do nothing, biases of zero, and small noise in the matrices."""
    rng = Random("planted-induction")
    shapes = {"attn.c_attn": (D_MODEL, 3 * D_MODEL), "attn.c_proj": (D_MODEL, D_MODEL), "mlp.c_fc": (D_MODEL, D_MODEL)}
    shapes["mlp.c_proj"] = (D_MODEL, D_MODEL)
    weights: Weights = {}
    for layer in range(N_LAYERS):
        block = f"transformer.h.{layer}"
        for name, (rows, columns) in shapes.items():
            values = [rng.random() for _ in range(rows * columns)]
            weights[f"{block}.{name}.weight"] = (torch.tensor(values, dtype=torch.float64).view(rows, columns) * 2 - 1).mul(NOISE).float()
            weights[f"{block}.{name}.bias"] = torch.zeros(columns)
        weights |= _idle_norm(f"{block}.ln_1") | _idle_norm(f"{block}.ln_2")
    return weights | _idle_norm("transformer.ln_f")


def _idle_norm(name: str) -> Weights:
    return {f"{name}.weight": torch.ones(D_MODEL), f"{name}.bias": torch.zeros(D_MODEL)}


def _seen(hot: int) -> float:
    """What a coordinate of 1 becomes, above the others, in a layer norm of a stream with `hot` such coordinates."""
    mean = hot / D_MODEL
    return 1 / math.sqrt(mean - mean**2)


def _plant_previous_token(weights: Weights, eye: Tensor) -> None:
    """Queries ask for the position before, keys give their position, values carry the token."""
    layer, head = PREVIOUS_TOKEN_HEAD
    query, key, value = _parts(weights, layer, head)
    strength = _strength(hot=2)
    query.zero_()[POSITION] = torch.roll(eye, -1, dims=1) * strength
    query[D_HEAD] = 0.0
    key.zero_()[POSITION] = eye * strength
    value.zero_()[TOKEN] = eye / _seen(2)
    _output(weights, layer, head).zero_()[:, PREVIOUS] = eye


def _plant_induction(weights: Weights, eye: Tensor) -> None:
    """Queries ask for the present token, keys give the previous token, values carry the token; the first place is never chosen."""
    layer, head = INDUCTION_HEAD
    query, key, value = _parts(weights, layer, head)
    strength = _strength(hot=3)
    query.zero_()[TOKEN] = eye * strength
    query[START_FLAG] = 0.0
    key.zero_()[PREVIOUS] = eye * strength
    key[PREVIOUS.start + START_FLAG] = 0.0
    bias = weights[f"transformer.h.{layer}.attn.c_attn.bias"]
    bias[head * D_HEAD + START_FLAG] = strength * _seen(3)
    key[POSITION.start, START_FLAG] = -3 * strength
    value.zero_()[TOKEN] = eye / _seen(3)
    _output(weights, layer, head).zero_()[:, NEXT] = eye


def _strength(hot: int) -> float:
    """Factor for queries and for keys that makes the score of a match `SHARPNESS`."""
    return math.sqrt(SHARPNESS * math.sqrt(D_HEAD)) / _seen(hot)


def _parts(weights: Weights, layer: int, head: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views [d_model, d_head] of a head's query, key and value weights."""
    joint = weights[f"transformer.h.{layer}.attn.c_attn.weight"]
    query, key, value = (joint[:, i * D_MODEL + head * D_HEAD :][:, :D_HEAD] for i in range(3))
    return query, key, value


def _output(weights: Weights, layer: int, head: int) -> Tensor:
    """View [d_head, d_model] of a head's output weights."""
    return weights[f"transformer.h.{layer}.attn.c_proj.weight"][head * D_HEAD : (head + 1) * D_HEAD]


def planted_config() -> GPT2Config:
    """The shape of the model."""
    return GPT2Config(
        vocab_size=len(WORDS) + 1,
        n_positions=D_HEAD,
        n_embd=D_MODEL,
        n_layer=N_LAYERS,
        n_head=N_HEADS,
        n_inner=D_MODEL,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        architectures=["GPT2LMHeadModel"],
        dtype="float32",
    )


def planted_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, split at white space; a word it does not know becomes `<|end|>`."""
    vocabulary = {word: number for number, word in enumerate((END, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=END))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, unk_token=END)


def write_planted(folder: Path) -> None:
    """Write the model as a Hugging Face folder."""
    (folder / "model.safetensors").write_bytes(save(planted_weights(), metadata={"format": "pt"}))
    planted_config().save_pretrained(folder)
    planted_tokenizer().save_pretrained(folder)
