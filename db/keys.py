"""API keys: made here, shown once, kept as an HMAC. `plk_<prefix>_<secret>_<check>`; the check finds typing errors without a query."""

import hashlib
import hmac
import os
import secrets
import string
import zlib
from pathlib import Path
from typing import NamedTuple

from engine.errors import StoreError
from engine.settings import Settings
from engine.store import write_atomically

_ALPHABET = string.ascii_lowercase + string.digits
_PREFIX_LENGTH = 8
_SECRET_BYTES = 32


class KeyParts(NamedTuple):
    """A well-formed key, cut up."""

    prefix: str
    secret: str


def new_key() -> str:
    """A fresh key with 256 bits of secret."""
    prefix = "".join(secrets.choice(_ALPHABET) for _ in range(_PREFIX_LENGTH))
    body = f"plk_{prefix}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    return f"{body}_{_check(body)}"


def key_parts(key: str) -> KeyParts | None:
    """Prefix and secret of a key, or None when it cannot be one."""
    body, _, check = key.rpartition("_")
    if not key.isascii() or len(key) > 100 or not body.startswith("plk_") or check != _check(body):
        return None
    prefix, _, secret = body.removeprefix("plk_").partition("_")
    return KeyParts(prefix, secret) if len(prefix) == _PREFIX_LENGTH and secret else None


def key_hmac(secret: str, pepper: bytes) -> bytes:
    """What the database keeps of a secret."""
    return hmac.digest(pepper, secret.encode(), "sha256")


def same(one: bytes, other: bytes) -> bool:
    """Equality in constant time."""
    return hmac.compare_digest(one, other)


def read_pepper(settings: Settings) -> bytes:
    """The secret that all key hashes of this instance depend on: `secret_key`, or a file in the data folder made on first use.

    Raises:
        StoreError: the file cannot be written or read.
    """
    if settings.secret_key:
        return hashlib.sha256(settings.secret_key.encode()).digest()
    return bytes.fromhex(secret_file(settings.data_dir / "secret-key", secrets.token_hex(32)))


def secret_file(file: Path, fresh: str) -> str:
    """The text of a file that only its owner may read; when there is none, it is made with the text given.

    Of several processes that come first at the same time, all get the text of one.

    Raises:
        StoreError: it cannot be written or read.
    """
    try:
        if not file.exists():
            _write_secret(file, fresh)
        return file.read_text(encoding="utf-8").strip()
    except OSError as failed:
        raise StoreError(
            f"{file} cannot be used: {failed.strerror or failed}.", next_step="Check its permissions and the disk."
        ) from failed


def _write_secret(file: Path, secret: str) -> None:
    """Publishes the file under its name in one step, mode 600 from the start, unless somebody else did first."""
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    write_atomically(draft, b"")
    try:
        draft.chmod(0o600)
        draft.write_text(secret + "\n", encoding="utf-8")
        if not _linked(draft, file):
            draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def _linked(draft: Path, file: Path) -> bool:
    """Whether the name now exists: a hard link fails if it does already, which is what decides a race."""
    try:
        os.link(draft, file)
    except FileExistsError:
        return True
    except OSError:  # a file system without hard links
        return False
    return True


def _check(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"
