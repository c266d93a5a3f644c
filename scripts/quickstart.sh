#!/usr/bin/env bash
# From a fresh clone to a results table and a report: installs the packages, then runs zero-shot CLIP, and CoOp with 16 and
# 4 context tokens at 1, 2, 4, 8, 16 shots, on handwritten digits with the tiny CLIP in the repository.
#   bash scripts/quickstart.sh
#   SEEDS="1 2 3" bash scripts/quickstart.sh     # three runs of each CoOp cell: mean ± 95% interval
# Also from the environment: DATA (./data), OUTPUT (./output), JOBS (runs at a time; the number of cores).
# Arguments (KEY VALUE pairs) go to every run.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

status=0
python tools/sweep.py configs/sweeps/digits.yaml --root "$DATA" --output-dir "$OUTPUT/digits" \
    --seeds "${SEEDS:-1}" ${JOBS:+--jobs "$JOBS"} "$@" || status=$?
[ $status -gt 1 ] || { python tools/results_table.py "$OUTPUT/digits" && python tools/report.py "$OUTPUT/digits"; }
exit $status
