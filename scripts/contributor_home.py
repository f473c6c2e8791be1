"""What a contributor keeps on disk: `~/.philab/config.json` with the key, and beside it runs, spool and rejected submissions."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from engine.errors import NotAllowed, SpecError, StoreError
from engine.settings import Settings
from engine.store import write_atomically


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a contributor is at one instance."""

    url: str
    username: str
    contributor_id: str
    api_key: str


class ContributorHome:
    """The folder; made on first use, readable by its owner only."""

    def __init__(self, folder: Path | None = None) -> None:
        """Takes a folder; `~/.philab` when left out."""
        self.folder = folder or Path.home() / ".philab"

    @property
    def config_file(self) -> Path:
        """Where the key is."""
        return self.folder / "config.json"

    def identity(self) -> Identity | None:
        """Who registered here, if anybody did.

        Raises:
            SpecError: config.json is not as `register` writes it.
        """
        try:
            return Identity(**json.loads(self.config_file.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as wrong:
            raise SpecError(
                f"{self.config_file} cannot be read: {wrong}.", next_step="Register again: philab contribute register."
            ) from wrong

    def save(self, identity: Identity) -> None:
        """Writes config.json, mode 600."""
        self.make(self.folder)
        try:
            write_atomically(self.config_file, json.dumps(asdict(identity), indent=1).encode())
            self.config_file.chmod(0o600)
        except OSError as failed:
            raise StoreError(f"{self.config_file} cannot be written: {failed.strerror}.", next_step="Free some space.") from failed

    def runs(self) -> Path:
        """Folder of the runs made for others."""
        return self.make(self.folder / "runs")

    def make(self, folder: Path) -> Path:
        """A folder below, made with mode 700; the modes of folders that exist are left alone."""
        try:
            missing = [*reversed([parent for parent in (folder, *folder.parents) if not parent.exists()])]
            for parent in missing:
                parent.mkdir(mode=0o700 if parent.is_relative_to(self.folder) else 0o755, exist_ok=True)
        except OSError as failed:
            raise StoreError(f"{folder} cannot be made: {failed.strerror}.", next_step="Choose another folder with --home.") from failed
        return folder


def check_enabled(settings: Settings) -> None:
    """Keeps a machine whose owner wants no community features from talking to one.

    Raises:
        NotAllowed: they are switched off.
    """
    if not settings.platform.enabled:
        raise NotAllowed("community features are switched off on this machine.", next_step="Set platform.enabled to true in app.yaml.")


def instance_url(flag: str | None, settings: Settings, identity: Identity | None) -> str:
    """Address of the instance: the flag, else the settings, else where this machine registered.

    Raises:
        SpecError: nobody named one, or it is not an address.
    """
    url = flag or settings.platform.central_url or (identity.url if identity else None)
    if not url:
        raise SpecError("no community instance was named.", next_step="Give --url https://..., or set PHILAB_CENTRAL_URL.")
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.query or parts.fragment or "@" in parts.netloc:
        raise SpecError(f"'{url}' is not the address of an instance; expected https://host, without a key or a query in it.")
    return url.rstrip("/")


def key_for(url: str, flag: str | None, settings: Settings, identity: Identity | None) -> str:
    """The key to show at that instance. A saved key is shown only where it was given out.

    Raises:
        NotAllowed: there is none.
    """
    saved = identity.api_key if identity and identity.url == url else None
    key = flag or settings.platform.api_key or saved
    if not key:
        raise NotAllowed(
            f"this machine has no key for {url}.", next_step="Register first: philab contribute register --username NAME --email ADDRESS."
        )
    return key
