"""Where a run came from: code, machine, model and data, so that it can be trusted and repeated. Imports without torch."""

import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from engine.spec.base import Frozen, Sha256

DeviceType = Literal["cuda", "mps", "cpu"]


class Hardware(Frozen):
    """The machine, without anything that names its owner: no host name, no user, no paths."""

    device: DeviceType
    name: Annotated[str, Field(max_length=200, description="Model of the GPU, or of the processor.")]
    vram_gb: Annotated[float | None, Field(ge=0, description="Memory of the GPU in GiB; none without one.")] = None
    cores: Annotated[int, Field(ge=1)]
    memory_gb: Annotated[float, Field(gt=0, description="Main memory in GiB.")]
    system: Annotated[str, Field(max_length=100, description="Operating system and processor type, as in 'Linux x86_64'.")]

    @property
    def hardware_class(self) -> str:
        """The class that replication counts: device type and model, for example `cpu/x86_64` or `cuda/NVIDIA H200`."""
        return f"cuda/{self.name}" if self.device == "cuda" else f"{self.device}/{self.system.split()[-1]}"


class Provenance(Frozen):
    """What was used, by hash and version."""

    spec_sha256: Sha256
    question_sha256: Sha256
    model_fingerprint: Annotated[Sha256, Field(description="SHA-256 over names, shapes, types and bytes of all weights, and the config.")]
    model_commit: Annotated[
        str | None, Field(pattern=r"^[0-9a-f]{40}$", description="Commit on the Hugging Face hub; none for shipped models and folders.")
    ] = None
    dataset_sha256: Annotated[Sha256, Field(description="Content hash of the whole dataset that the rows were taken from.")]
    reference_sha256: Annotated[Sha256 | None, Field(description="Content hash of the reference slice's rows.")] = None
    engine_version: str
    versions: Annotated[dict[str, str], Field(description="Python, torch, transformers and tokenizers.")]
    git_commit: str | None = None
    git_dirty: bool | None = None
    argv: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    preset: str | None = None
    hardware: Hardware
    started_at: AwareDatetime
    duration_s: Annotated[float | None, Field(ge=0)] = None


def engine_version() -> str:
    """Version of the installed philab."""
    return metadata.version("philab")


def library_versions() -> dict[str, str]:
    """Versions of what decides a run's numbers, read without importing any of it."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "transformers", "tokenizers", "numpy"):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def git_state() -> tuple[str | None, bool | None]:
    """Commit of the checkout that the engine runs from, and whether it has uncommitted changes; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None, None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit or None, bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def safe_argv(argv: Sequence[str]) -> tuple[str, ...]:
    """The command line with secrets and places taken out: keys become `***`, paths their last part."""
    hide_next, shown = False, list[str]()
    for argument in argv:
        name, equals, value = argument.partition("=")
        secret = any(word in name.lower() for word in ("key", "token", "password", "secret"))
        if hide_next or argument.startswith("plk_"):
            shown.append("***")
        elif secret and name.startswith("-") and equals:
            shown.append(f"{name}=***")
        elif equals and name.startswith("-"):
            shown.append(f"{name}={Path(value).name or value}")
        else:
            shown.append(Path(argument).name if "/" in argument or "\\" in argument else argument)
        hide_next = secret and name.startswith("-") and not equals
    return tuple(shown)
