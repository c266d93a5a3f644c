#!/usr/bin/env bash
# Runs the study on ImageNette with CLIP RN50: zero-shot, and CoOp with 16 and 4 context tokens at 1, 2, 4, 8, 16 shots.
# Writes the results table and the report to OUTPUT/imagenet. Finished runs are skipped.
#   python tools/prepare_imagenette.py --root ./data
#   bash scripts/imagenette.sh
#   SEEDS="1 2 3" bash scripts/imagenette.sh     # three runs of each CoOp cell: mean ± 95% interval
# Also from the environment: DATA (./data), OUTPUT (./output). Arguments (KEY VALUE pairs) go to every run.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

status=0
python tools/sweep.py configs/sweeps/imagenette.yaml --root "$DATA" --output-dir "$OUTPUT/imagenet" \
    --seeds "${SEEDS:-1}" "$@" || status=$?
[ $status -gt 1 ] || { python tools/results_table.py "$OUTPUT/imagenet" && python tools/report.py "$OUTPUT/imagenet"; } ||
    [ $status = 1 ]
exit $status
