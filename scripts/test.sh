#!/usr/bin/env bash
# Runs the tests, in the active environment or in .venv. Arguments go to pytest: bash scripts/test.sh -k coop
# One process a core, up to four, each on one thread: several threads a process would wait for each other's cores.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
OMP_NUM_THREADS=1 python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
