#!/bin/sh
# One step: makes .venv, installs the pinned packages and this checkout, and says what to do next.
set -eu
cd "$(dirname "$0")"
PYTHON="${PYTHON:-python3}" bash .ci/install
touch .venv/.ready
cat <<'NEXT'

Installed. Next:
  . .venv/bin/activate
  philab demo                                             the whole chain on this machine, in a minute or two
  philab app                                              the lab in your browser

To lend compute to a community instance:
  philab-contribute --url https://lab.example.org register --username you --email you@example.org
  philab-contribute list-tasks
  philab-contribute run --task-id ID
NEXT
