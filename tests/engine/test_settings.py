"""Defaults, then app.yaml, then the environment, then flags; a key nobody knows is an error."""

from pathlib import Path

import pytest

from engine.errors import SpecError
from engine.settings import read_settings


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    return {"PHILAB_CONFIG": str(tmp_path / "conf"), "PHILAB_DATA": str(tmp_path / "data")}


def test_the_defaults_are_local(environment: dict[str, str], tmp_path: Path) -> None:
    settings = read_settings(environment)
    assert (settings.mode, settings.database_url, settings.default_model) == ("local", None, "philab-micro")
    assert settings.data_dir == tmp_path / "data"


def test_each_source_beats_the_one_before(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "conf" / "app.yaml").write_text(
        "default_model: from-file\nplatform: {central_url: 'https://file.example', auto_submit: true}\n"
    )
    assert read_settings(environment).default_model == "from-file"
    environment |= {"PHILAB_DEFAULT_MODEL": "from-environment", "PHILAB_CENTRAL_URL": "https://environment.example"}
    settings = read_settings(environment)
    assert settings.default_model == "from-environment"
    assert (settings.platform.central_url, settings.platform.auto_submit) == ("https://environment.example", True)
    assert read_settings(environment, default_model="from-flag").default_model == "from-flag"
    assert read_settings(environment, default_model=None).default_model == "from-environment"


@pytest.mark.parametrize(
    ("text", "said"),
    [("colour: red", "colour"), ("mode: party", "mode"), ("- 1", "expected 'key: value' lines"), ("a: [", "cannot be read")],
)
def test_a_wrong_file_names_the_fault(environment: dict[str, str], tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "conf" / "app.yaml").write_text(text)
    with pytest.raises(SpecError) as caught:
        read_settings(environment)
    assert said in str(caught.value)


def test_models_have_settings_of_their_own(environment: dict[str, str]) -> None:
    assert (read_settings(environment).model_cache_gb, read_settings(environment).device) == (None, "auto")
    settings = read_settings(environment | {"PHILAB_MODEL_CACHE_GB": "2.5", "PHILAB_DEVICE": "spread"})
    assert (settings.model_cache_gb, settings.device) == (2.5, "spread")
    for name, value, said in [("PHILAB_MODEL_CACHE_GB", "-1", "model_cache_gb"), ("PHILAB_DEVICE", "tpu", "device")]:
        with pytest.raises(SpecError, match=f"setting '{said}'"):
            read_settings(environment | {name: value})


def test_secrets_are_not_shown(environment: dict[str, str]) -> None:
    settings = read_settings(environment | {"SECRET_KEY": "pepper-1", "PHILAB_API_KEY": "plk_1", "DATABASE_URL": "postgresql://u:pw@h/d"})
    assert not any(secret in repr(settings) for secret in ("pepper-1", "plk_1", "pw@h"))
