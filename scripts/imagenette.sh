#!/usr/bin/env bash
# The study on ImageNette with CLIP RN50: zero-shot, CoOp with 16 and with 4 context tokens at 1, 2, 4, 8, 16 shots,
# then the table in OUTPUT/imagenet. Finished runs are skipped.
#   python tools/prepare_imagenette.py --root ./data
#   bash scripts/imagenette.sh                   # KEY VALUE pairs given here go to every run
# From the environment: DATA, OUTPUT, SEEDS (1), SHOTS.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh
settings=(--dataset-config-file configs/datasets/imagenet.yaml --config-file configs/trainers/CoOp/rn50.yaml)

run "$OUTPUT/imagenet/ZeroshotCLIP" --trainer ZeroshotCLIP --seed 1 --eval-only "${settings[@]}" \
    DATASET.NUM_SHOTS 0 "$@"
for seed in ${SEEDS:-1}; do
    for shots in ${SHOTS:-1 2 4 8 16}; do
        run "$OUTPUT/imagenet/CoOp/rn50_${shots}shots/seed$seed" --trainer CoOp --seed "$seed" "${settings[@]}" \
            DATASET.NUM_SHOTS "$shots" "$@"
        run "$OUTPUT/imagenet/CoOp/rn50_${shots}shots_ctx4/seed$seed" --trainer CoOp --seed "$seed" "${settings[@]}" \
            DATASET.NUM_SHOTS "$shots" TRAINER.COOP.N_CTX 4 "$@"
    done
done
python tools/results_table.py "$OUTPUT/imagenet"
