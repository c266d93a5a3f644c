#!/usr/bin/env bash
# Runs the tests, in the active environment or in .venv. Arguments go to pytest: bash scripts/test.sh -k coop
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
python -m pytest "$@"
