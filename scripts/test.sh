#!/usr/bin/env bash
# Runs the tests, in the active environment or in .venv. Arguments go to pytest: bash scripts/test.sh -k coop
# One process per core, up to four, each with one thread: more threads than cores would wait for each other.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
OMP_NUM_THREADS=1 python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
