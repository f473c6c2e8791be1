"""What is kept of a command line must not give anything away."""

import pytest

from engine.provenance import git_state, library_versions, safe_argv


@pytest.mark.parametrize(
    ("argv", "kept"),
    [
        (["/home/me/bin/philab", "run", "spec.yaml"], ("philab", "run", "spec.yaml")),
        (["p", "--api-key", "plk_x_y", "--out", "/home/me/o"], ("p", "--api-key", "***", "--out", "o")),
        (["p", "--api-key=plk_x_y", "--token=1", "--out=/home/me/o"], ("p", "--api-key=***", "--token=***", "--out=o")),
        (["p", "plk_stray"], ("p", "***")),
    ],
)
def test_secrets_and_places_are_left_out(argv: list[str], kept: tuple[str, ...]) -> None:
    assert safe_argv(argv) == kept


def test_versions_are_those_of_the_installed_libraries() -> None:
    import torch

    assert library_versions()["torch"] == torch.__version__


def test_the_commit_is_a_full_hash_or_nothing() -> None:
    commit, dirty = git_state()
    assert (commit is None and dirty is None) or (len(commit or "") == 40 and isinstance(dirty, bool))
