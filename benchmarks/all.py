"""Runs every benchmark, one after the other in processes of their own, and prints the table of results.

python -m benchmarks.all [--quick]
"""

import argparse
import datetime
import os
import platform
import subprocess
import sys

RUNS = (
    ("engine_capture",),
    ("engine_sweep", "--shape", "gpt2", "--read", "last"),
    ("engine_sweep", "--shape", "gpt2", "--read", "all"),
    ("engine_sweep", "--shape", "phi", "--read", "last"),
    ("engine_sweep", "--shape", "phi", "--read", "all"),
    ("engine_screen", "--shape", "gpt2"),
    ("engine_screen", "--shape", "phi"),
    ("engine_decode", "--shape", "gpt2"),
    ("engine_decode", "--shape", "phi"),
    ("engine_strengths", "--shape", "gpt2"),
    ("engine_strengths", "--shape", "gpt2", "--batch", "8"),
    ("engine_strengths", "--shape", "phi"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds each: whether everything runs, not how fast")
    rounds = ["--rounds", "2"] if parser.parse_args().quick else []
    rows = [row for run in RUNS for row in _rows([*run, *rounds])]
    print(f"\n{datetime.datetime.now(datetime.UTC).date()}, {_machine()}\n")
    print("| task | measure | ratio | target |\n|---|---|---|---|")
    print("\n".join(rows))


def _rows(run: list[str]) -> list[str]:
    """Rows of the table that one benchmark prints."""
    command = [sys.executable, "-m", f"benchmarks.{run[0]}", *run[1:]]
    print("$", *command[1:], flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout, flush=True)
    return [line for line in done.stdout.splitlines() if line.startswith("| ")]


def _machine() -> str:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
