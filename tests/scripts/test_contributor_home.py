import os
import stat
from pathlib import Path

import pytest

from engine.errors import NotAllowed, SpecError, StoreError
from engine.settings import Settings
from scripts.contributor_home import ContributorHome, Identity, check_enabled, instance_url, key_for

ADA = Identity(url="https://lab.example.org", username="ada", contributor_id="1", api_key="plk_secret")


def settings(tmp_path: Path, **platform: str) -> Settings:
    return Settings.model_validate({"data_dir": tmp_path, "config_dir": tmp_path, "platform": platform})


def test_what_is_saved_comes_back_and_only_its_owner_may_read_it(tmp_path: Path):
    home = ContributorHome(tmp_path / "home" / ".philab")
    assert home.identity() is None
    home.save(ADA)
    assert home.identity() == ADA
    assert stat.S_IMODE(home.config_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.folder.stat().st_mode) == 0o700


def test_modes_of_folders_that_exist_are_left_alone(tmp_path: Path):
    tmp_path.chmod(0o755)
    ContributorHome(tmp_path).save(ADA)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_who_wants_no_community_talks_to_none(tmp_path: Path):
    check_enabled(settings(tmp_path))
    with pytest.raises(NotAllowed, match=r"platform\.enabled"):
        check_enabled(Settings.model_validate({"data_dir": tmp_path, "config_dir": tmp_path, "platform": {"enabled": False}}))


def test_a_damaged_config_says_so(tmp_path: Path):
    home = ContributorHome(tmp_path)
    home.config_file.write_text("{", encoding="utf-8")
    with pytest.raises(SpecError, match="cannot be read"):
        home.identity()


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="needs a folder that nobody can write")  # noqa: PTH110
def test_a_folder_that_cannot_be_made_says_so():
    with pytest.raises(StoreError, match="cannot be made"):
        ContributorHome(Path("/proc/philab")).save(ADA)


def test_the_flag_wins_over_settings_and_those_over_what_was_saved(tmp_path: Path):
    told = settings(tmp_path, central_url="https://told.example.org")
    assert instance_url("https://flag.example.org/", told, ADA) == "https://flag.example.org"
    assert instance_url(None, told, ADA) == "https://told.example.org"
    assert instance_url(None, settings(tmp_path), ADA) == ADA.url


@pytest.mark.parametrize("wrong", ["lab.example.org", "file:///etc/passwd", "https://x/?key=1", "https://user:pass@x", "https://"])
def test_what_is_no_address_is_refused(wrong: str, tmp_path: Path):
    with pytest.raises(SpecError, match="is not the address"):
        instance_url(wrong, settings(tmp_path), None)


def test_without_any_address_the_next_step_is_named(tmp_path: Path):
    with pytest.raises(SpecError, match="--url"):
        instance_url(None, settings(tmp_path), None)


def test_a_saved_key_is_shown_only_where_it_was_given_out(tmp_path: Path):
    assert key_for(ADA.url, None, settings(tmp_path), ADA) == "plk_secret"
    with pytest.raises(NotAllowed, match="no key"):
        key_for("https://other.example.org", None, settings(tmp_path), ADA)
    assert key_for("https://other.example.org", None, settings(tmp_path, api_key="plk_told"), ADA) == "plk_told"
