"""A model folder to a model and its tokenizer, by transformers. Code from a model is never run, and nothing is made up."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from engine.errors import ModelError, ModelTooLarge
from engine.hooks.shortage import ran_out_of_memory
from engine.spec.base import ModelRef

LOUD = ("accelerate.big_modeling", "accelerate.utils.modeling")
"""Loggers that repeat what a device map was asked to do."""


def read_model(ref: ModelRef, folder: Path, options: Mapping[str, Any]) -> PreTrainedModel:
    """The model in evaluation mode, its weights without gradients.

    Args:
        ref: precision and attention kernel.
        folder: config and safetensors.
        options: more arguments of `from_pretrained`, about where the weights go and in how many bits.

    Raises:
        ModelError: it needs code of its own, lacks weights, or cannot be placed like that.
    """
    _refuse_adapter(folder)
    config = _config(ref, folder)
    kernel = {} if ref.attention == "default" else {"attn_implementation": ref.attention}
    try:
        with _quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=getattr(torch, ref.dtype),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **kernel,
                **options,
            )
    except (ValueError, KeyError, OSError, RuntimeError, ImportError) as wrong:
        if ran_out_of_memory(wrong):
            raise
        _refuse_own_code(ref, folder / "config.json", wrong)
        _refuse_waiting_bits(ref, wrong)
        raise ModelError(f"'{ref.id}' cannot be loaded: {first_line(wrong)}", next_step="Choose another model.") from wrong
    model, report = loaded
    _refuse_incomplete(ref, report)
    _refuse_split_ties(ref, model)
    return model.eval().requires_grad_(False)


def read_tokenizer(ref: ModelRef, folder: Path) -> PreTrainedTokenizerBase:
    """The model's own tokenizer.

    Raises:
        ModelError: there is none, or it needs code of its own.
    """
    try:
        with _quiet():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError, ImportError) as wrong:
        _refuse_own_code(ref, folder / "tokenizer_config.json", wrong)
        raise ModelError(
            f"the tokenizer of '{ref.id}' cannot be loaded: {first_line(wrong)}", next_step="Save the tokenizer beside the model."
        ) from wrong


@contextmanager
def shortage_told(ref: ModelRef) -> Iterator[None]:
    """Inside the block, an end of the memory is a refusal: something else took it after it was measured.

    Raises:
        ModelTooLarge: the memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as wrong:
        if not ran_out_of_memory(wrong):
            raise
        raise ModelTooLarge(
            f"the memory ran out while '{ref.id}' was loaded: {first_line(wrong)}", next_step="Free some memory, or choose a smaller model."
        ) from wrong


def first_line(error: BaseException) -> str:
    """The first line of an error's text, as a sentence."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".") + "."


def _refuse_adapter(folder: Path) -> None:
    """An adapter names another model as its base, and that would be loaded instead."""
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder} holds an adapter, not a whole model.", next_step="Merge it into its base model and save that.")


def _config(ref: ModelRef, folder: Path) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as wrong:
        _refuse_own_code(ref, folder / "config.json", wrong)
        raise ModelError(f"the config of '{ref.id}' cannot be used: {first_line(wrong)}", next_step="Choose another model.") from wrong


def _refuse_own_code(ref: ModelRef, file: Path, wrong: Exception) -> None:
    """What failed because the library has no class of its own for it, and the model would bring one."""
    with suppress(OSError, ValueError):
        if "auto_map" in json.loads(file.read_text(encoding="utf-8")):
            raise ModelError(
                f"'{ref.id}' comes with code of its own, which is never run, and transformers has no class for it.",
                next_step="Choose a model of an architecture that transformers knows.",
            ) from wrong


def _refuse_waiting_bits(ref: ModelRef, wrong: Exception) -> None:
    if ref.quantization and "dispatched on the CPU or the disk" in str(wrong):
        raise ModelError(
            f"the device map puts a part of '{ref.id}' in main memory or on the disk, where weights in {ref.quantization} cannot wait.",
            next_step="Use one kind of device only, or leave quantization out.",
        ) from wrong


def _refuse_incomplete(ref: ModelRef, report: Mapping[str, Any]) -> None:
    """Weights that the files lack would be random numbers."""
    lacking = sorted([*report.get("missing_keys", ()), *(str(key) for key in report.get("mismatched_keys", ()))])
    if lacking:
        raise ModelError(
            f"'{ref.id}' lacks {len(lacking)} of its weights or has them in another shape, the first is {lacking[0]}.",
            next_step="Save the whole causal language model, with its head.",
        )


def _refuse_split_ties(ref: ModelRef, model: PreTrainedModel) -> None:
    """Two modules that share weights must wait for them at the same place."""
    places: Mapping[str, object] = getattr(model, "hf_device_map", None) or {}
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for name, shared in tied.items():
        if _place(name, places) != _place(shared, places):
            raise ModelError(
                f"'{name}' shares the weights of '{shared}' in '{ref.id}', but the device map puts them at two places.",
                next_step="Put both at the same place.",
            )


def _place(name: str, places: Mapping[str, object]) -> object:
    above = [module for module in places if not module or name == module or name.startswith(f"{module}.")]
    return places[max(above, key=len)] if above else None


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and reports of transformers: what matters in them becomes an error of ours."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with ExitStack() as stack:
        for logger in map(logging.getLogger, LOUD):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            transformers_logging.set_verbosity(level)
            if bars:
                transformers_logging.enable_progress_bar()
