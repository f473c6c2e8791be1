"""Fixtures of the engine: tiny real models of every family, a tokenizer trained in memory, and a hub on the loopback.

torch is imported when a fixture is first used, so that tests which must do without it can.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from engine.models.loading import LoadedModel

TEXTS = (
    "the cat sat on the mat and the dog sat on the log",
    "a bird is an animal and a stone is not an animal",
    "when Mary and John went to the shop John gave a book to Mary",
    "two and two are four but two and three are five",
    "the sun is hot while the snow is cold",
)
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.25,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 12}
SANDWICH = {**WIDE, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 48, "n_positions": 64, "initializer_range": 0.25}),
    "gpt_neox_parallel": ("gpt_neox", {**SMALL, "use_parallel_residual": True}),
    "gpt_neox_serial": ("gpt_neox", {**SMALL, "use_parallel_residual": False}),
    "llama": ("llama", GROUPED),
    "mistral": ("mistral", {**GROUPED, "sliding_window": 6}),
    "qwen2": ("qwen2", GROUPED),
    "qwen3": ("qwen3", WIDE),
    "gemma2": ("gemma2", {**SANDWICH, "query_pre_attn_scalar": 12}),
    "gemma3": ("gemma3_text", {**SANDWICH, "query_pre_attn_scalar": 12}),
    "phi": ("phi", SMALL),
    "phi3": ("phi3", {**GROUPED, "pad_token_id": 0}),
}
"""Name -> model type of transformers and its config."""


@cache
def tiny_tokenizer() -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer, trained on a few sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|end|>")


def tiny_model(family: str, **overrides: Any) -> "PreTrainedModel":
    """A random model of a family in evaluation mode: three layers, four heads, always the same weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(1)
    kind, values = FAMILIES[family]
    tokens = {"vocab_size": len(tiny_tokenizer()), "bos_token_id": 0, "eos_token_id": 0}
    config = AutoConfig.for_model(kind, **{**values, **tokens, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # biases and norms begin as constants, which would hide mistakes
                parameter.data.add_(torch.randn_like(parameter) * (0.1 if name.endswith("weight") else 0.3))
    return model.eval().requires_grad_(False)


def as_loaded(model: "PreTrainedModel", name: str = "tiny") -> "LoadedModel":
    """A model in memory as if it had been loaded."""
    from engine.hooks.discovery import find_anatomy
    from engine.models.loading import LoadedModel
    from engine.spec import ModelRef

    return LoadedModel(
        model=model,
        tokenizer=tiny_tokenizer(),
        device=model.device,
        fingerprint="0" * 64,
        anatomy=find_anatomy(model),
        ref=ModelRef(id=name),
    )


@cache
def _loaded_family(family: str) -> "LoadedModel":
    return as_loaded(tiny_model(family), family)


@pytest.fixture(params=FAMILIES)
def loaded(request: pytest.FixtureRequest) -> "LoadedModel":
    """Each family in turn."""
    return _loaded_family(request.param)


@pytest.fixture
def llama() -> "LoadedModel":
    """One serial model."""
    return _loaded_family("llama")


@pytest.fixture
def phi() -> "LoadedModel":
    """One parallel model."""
    return _loaded_family("phi")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with its tokenizer, as a Hugging Face folder."""
    return save_model(tiny_model("llama"), tmp_path_factory.mktemp("models") / "tiny")


def save_model(model: "PreTrainedModel", folder: Path, **options: Any) -> Path:
    """The folder, with model and tokenizer saved in it."""
    model.save_pretrained(folder, **options)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def hook_count(model: "PreTrainedModel") -> int:
    """Hooks and replaced forwards on all modules together."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) + ("forward" in module.__dict__) for module in model.modules())


@dataclass
class Hub:
    """A Hugging Face hub with what a test puts in, on a real port.

    Attributes:
        url: address of the hub.
        repos: id -> folder with its files.
        gated: ids that want their terms accepted; a token in `accepted` has done so.
        accepted: tokens that open gated ones.
        failing: names of files whose body is refused.
        cut: file name -> bytes after which the connection breaks off, once.
        requests: method and path of what was asked.
        ranges: what was asked for from the middle: file name -> first byte.
        tokens: tokens that came along.
    """

    url: str = ""
    repos: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    accepted: set[str] = field(default_factory=set)
    failing: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    ranges: dict[str, int] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)

    def commit(self, repo: str) -> str:
        """The one commit of a repository."""
        return hashlib.sha1(repo.encode(), usedforsecurity=False).hexdigest()

    def answer(self, path: str, token: str = "") -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path, asked with a token."""
        parts = unquote(urlsplit(path).path).strip("/").split("/")
        repo = "/".join(parts[2:4] if parts[:2] == ["api", "models"] else parts[:2])
        if repo not in self.repos:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if repo in self.gated and token not in self.accepted:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if parts[:2] == ["api", "models"]:
            return self._about(repo, parts[4:])
        return self._file(repo, parts[3], "/".join(parts[4:]))

    def _about(self, repo: str, rest: list[str]) -> tuple[int, dict[str, str], bytes]:
        if rest[1:] and rest[1] not in ("main", self.commit(repo)):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        files = sorted(file for file in self.repos[repo].iterdir() if file.is_file())
        if rest[:1] == ["tree"]:
            listing = [{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _sha1(file)} for file in files]
            return 200, {"Content-Type": "application/json"}, json.dumps(listing).encode()
        about = {"id": repo, "sha": self.commit(repo), "siblings": [{"rfilename": file.name} for file in files], "private": False}
        return 200, {"Content-Type": "application/json"}, json.dumps(about).encode()

    def _file(self, repo: str, revision: str, name: str) -> tuple[int, dict[str, str], bytes]:
        file = self.repos[repo] / name
        if revision not in ("main", self.commit(repo)) or not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        return 200, {"ETag": f'"{_sha1(file)}"', "X-Repo-Commit": self.commit(repo)}, file.read_bytes()


def _sha1(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(with_body=True)

        def do_HEAD(self) -> None:
            self._reply(with_body=False)

        def _reply(self, *, with_body: bool) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            hub.tokens |= {token} - {""}
            status, headers, body = hub.answer(self.path, token)
            file = self.path.rsplit("/", 1)[-1]
            if with_body and file in hub.failing:
                status, headers, body = 410, {}, b""
            if status == 200 and self.headers.get("Range"):
                start = hub.ranges[file] = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
                status, body, headers = 206, body[start:], {**headers, "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body[: hub.cut.get(file)])
                self.close_connection = hub.cut.pop(file, None) is not None

        def log_message(self, format: str, *args: object) -> None:
            """Stays silent."""

    return Handler


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub on the loopback, empty at first."""
    made = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(made))
    server.daemon_threads = True
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[[list[dict[str, str]]], Path]:
    """A function that writes rows as a JSONL dataset."""

    def write(rows: list[dict[str, str]]) -> Path:
        file = tmp_path / f"rows-{len(list(tmp_path.iterdir()))}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return file

    return write
