"""`philab models`."""

import pytest

from engine.model_presets import model_presets
from scripts.philab import main


def test_every_model_is_listed_with_its_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["name", "parameters", "tokens"]
    listed = {row.split()[0]: row for row in rows if row}
    assert set(model_presets()) <= set(listed)
    # 2,779,683,840 weights at 4 and 2 bytes; 263,101,440 of them stay at 2, the rest is at 1 and 9/16.
    assert listed["phi-2"].split() == ["phi-2", "2.8", "B", "2,048", "10.36", "5.18", "2.83", "1.81", "microsoft/phi-2"]
    assert listed["llama-3-8b"].endswith("meta-llama/Meta-Llama-3-8B-Instruct (gated)")
    assert listed["philab-micro"].endswith("shipped")
    assert "<0.01" in listed["tiny-gpt2"]


def test_it_takes_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["models", "phi-2"])
    assert "unrecognized arguments: phi-2" in capsys.readouterr().err
