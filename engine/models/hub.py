"""Models from the Hugging Face hub: safetensors, config and tokenizer files only, never code."""

import re
from pathlib import Path

from engine.errors import LabError, ModelError, UnknownModel
from engine.models.weights import INDEX, SINGLE, weight_files

SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]
WEIGHT_FILES = ["model*.safetensors"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT_S = 10


def hub_folder(repo_id: str, revision: str | None = None, *, endpoint: str | None = None, cache_dir: Path | None = None) -> Path:
    """The folder with a hub model's files, downloaded unless they are there already.

    A cut connection is taken up again where it broke off. After an interrupted download, whole files that have arrived are kept.

    Args:
        repo_id: id on the hub, for example `microsoft/phi-2`.
        revision: branch, tag or commit; the default branch when None.
        endpoint: address of the hub; that of HF_ENDPOINT when None.
        cache_dir: where downloads are kept; the hub's own cache when None.

    Raises:
        UnknownModel: the hub has no such model or revision, or cannot be asked.
        ModelError: the model is gated, has no safetensors, or the download failed.
    """
    if revision is not None and COMMIT.fullmatch(revision):
        folder = downloaded_folder(repo_id, revision, cache_dir)
        if folder is not None:
            return folder
    try:
        _ask(repo_id, revision, endpoint)
    except _Unreachable as unreachable:
        folder = downloaded_folder(repo_id, revision, cache_dir)
        if folder is None:
            raise _unreachable(repo_id, unreachable) from unreachable
        return folder
    return _downloaded(repo_id, revision, endpoint, cache_dir)


def downloaded_folder(repo_id: str, revision: str | None = None, cache_dir: Path | None = None) -> Path | None:
    """The folder of a model that was downloaded before, as a whole; nothing is asked of the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        patterns = [*SMALL_FILES, *WEIGHT_FILES]
        folder = Path(snapshot_download(repo_id, revision=revision, cache_dir=cache_dir, allow_patterns=patterns, local_files_only=True))
        weight_files(folder)
    except (LocalEntryNotFoundError, ModelError):
        return None
    whole = (folder / "config.json").is_file() and any((folder / name).is_file() for name in TOKENIZER_FILES)
    return folder if whole else None


def commit_of(folder: Path) -> str | None:
    """The commit that a folder of the hub's cache holds, 40 hex digits; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" and COMMIT.fullmatch(folder.name) else None


class _Unreachable(Exception):
    """The hub did not answer."""


def _ask(repo_id: str, revision: str | None, endpoint: str | None) -> None:
    """Refuses what cannot be had, by one request without retries: no network is told at once."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi(endpoint=endpoint).model_info(repo_id, revision=revision, timeout=TIMEOUT_S)
    except GatedRepoError as gated:
        raise _gated(repo_id) from gated
    except RepositoryNotFoundError as unknown:
        raise _unknown(repo_id) from unknown
    except RevisionNotFoundError as unknown:
        raise UnknownModel(f"'{repo_id}' has no revision '{revision}' on the hub.", next_step="Leave it out or name a commit.") from unknown
    except HfHubHTTPError as refused:
        status = refused.response.status_code
        if status >= 500 or status == 429:
            raise _Unreachable(f"it answered {status}") from refused
        raise ModelError(f"the hub refused to tell about '{repo_id}': status {status}.", next_step="Check HF_TOKEN.") from refused
    except (_http_error(), OSError) as failed:
        raise _Unreachable(type(failed).__name__) from failed
    names = {file.rfilename for file in info.siblings or []}
    if not names & {SINGLE, INDEX}:
        raise ModelError(
            f"'{repo_id}' has no safetensors weights on the hub.",
            next_step="Choose a model or revision that has them; the hub's converter puts some under a revision such as 'refs/pr/1'.",
        )


def _downloaded(repo_id: str, revision: str | None, endpoint: str | None, cache_dir: Path | None) -> Path:
    """The folder, small files first: where the weights are whole, everything is."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    try:
        for patterns in (SMALL_FILES, [*SMALL_FILES, *WEIGHT_FILES]):
            folder = snapshot_download(repo_id, revision=revision, endpoint=endpoint, cache_dir=cache_dir, allow_patterns=patterns)
    except GatedRepoError as gated:
        raise _gated(repo_id) from gated
    except (_http_error(), OSError, EOFError) as failed:
        reason = getattr(failed, "strerror", None) or str(failed).splitlines()[0]
        raise ModelError(
            f"'{repo_id}' could not be downloaded: {reason.rstrip('.')}.", next_step="Try again; whole files that have arrived are kept."
        ) from failed
    return Path(folder)


def _http_error() -> type[Exception]:
    """The base of what the hub's HTTP client raises; which client that is depends on the hub library's version."""
    from huggingface_hub import errors

    return errors.HTTPError  # pyright: ignore[reportPrivateImportUsage]


def _gated(repo_id: str) -> LabError:
    return ModelError(
        f"'{repo_id}' is gated: its owner wants its terms accepted.",
        next_step=f"Accept them at https://huggingface.co/{repo_id} and set HF_TOKEN.",
    )


def _unknown(repo_id: str) -> LabError:
    return UnknownModel(f"'{repo_id}' is not on the hub, or private.", next_step="Check the spelling, or set HF_TOKEN.")


def _unreachable(repo_id: str, reason: Exception) -> LabError:
    return UnknownModel(
        f"'{repo_id}' is neither shipped, nor a folder, nor downloaded before, and the hub cannot be reached ({reason}).",
        next_step="Check the network, or choose a shipped model.",
    )
