"""`philab app`: the pages and the API in one process, from any folder."""

import argparse
import errno
import ipaddress
import json
import os
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine.errors import Conflict, LabError, NotAllowed
from engine.settings import read_settings
from scripts.exit_code import command

PORT = 8000


@command
def main(argv: Sequence[str]) -> int:
    """Starts the web process and stays until it ends."""
    asked = _parser().parse_args(argv)
    _check_mode(asked.host)
    _check_port(asked.host, asked.port)
    program = Path(_folder("app")) / "main.py"
    flags = ["--server.address", asked.host, "--server.port", str(asked.port), "--server.headless", "true"]
    print(f"philab is at http://{_shown(asked.host)}:{asked.port} (API: /api/docs); Ctrl-C stops it.", flush=True)
    return _become([sys.executable, "-m", "streamlit", "run", str(program), *flags], {**_shipped_values(), **os.environ})


def _check_mode(host: str) -> None:
    """In local mode everybody who reaches the pages is the owner, so nobody else may reach them."""
    if read_settings().mode == "local" and not _is_loopback(host):
        raise NotAllowed(
            f"mode 'local' has no sign-in, so it is not served on {host}, which other machines reach.",
            next_step="Set PHILAB_MODE=hosted, or leave --host out.",
        )


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            if os.name == "posix":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as taken:
        if taken.errno == errno.EADDRINUSE:
            raise Conflict(f"port {port} on {host} is taken.", next_step=f"Choose another one: philab app --port {port + 1}.") from taken
        raise LabError(f"port {port} on {host} cannot be used: {taken.strerror}.", next_step="Choose another --host or --port.") from taken


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _shown(host: str) -> str:
    return "localhost" if _is_loopback(host) else f"[{host}]" if ":" in host else host


def _folder(package: str) -> str:
    """Where a package lies, without importing it."""
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise LabError(f"package '{package}' is not installed.", next_step="Install philab again: ./install.sh")
    return next(iter(found.submodule_search_locations))


def _shipped_values() -> dict[str, str]:
    """The values of .streamlit/config.toml as environment variables; Streamlit itself finds the file only from the repository's root."""
    app = Path(_folder("app"))
    candidates = (app.parent / ".streamlit" / "config.toml", app / "streamlit.toml")
    file = next((file for file in candidates if file.is_file()), None)
    values = _flat(tomllib.loads(file.read_text(encoding="utf-8"))) if file else ()
    return {_environment_name(key): value if isinstance(value, str) else json.dumps(value) for key, value in values}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _environment_name(key: str) -> str:
    snake = "".join(f"_{letter}" if letter.isupper() else letter for letter in key)
    return f"STREAMLIT_{snake.replace('.', '_').upper()}"


def _become(command_line: list[str], environment: dict[str, str]) -> int:
    """Replaces this process where the system can, so that signals reach the server itself."""
    if os.name == "posix":
        os.execve(command_line[0], command_line, environment)
    return subprocess.run(command_line, env=environment, check=False).returncode


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="philab app", description="Open the lab: pages and API in one process.")
    parser.add_argument("--port", type=int, default=int(os.environ.get("PORT") or PORT), help=f"port to listen on (default: {PORT})")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
