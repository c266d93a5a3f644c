#!/usr/bin/env bash
# Runs CoOp once for each seed: bash scripts/coop/main.sh DATASET CONFIG POSITION N_CTX SHOTS CSC [KEY VALUE ...]
#   bash scripts/coop/main.sh imagenet rn50 end 16 16 False
# POSITION of the class name: end, middle, front. CSC: class-specific contexts. From the environment: DATA, OUTPUT,
# SEEDS ("1 2 3").
set -euo pipefail
[ $# -ge 6 ] || { sed -n '2,5p' "$0"; exit 2; }
cd "$(dirname "$0")/../.."
. scripts/common.sh
dataset=$1 config=$2 position=$3 n_ctx=$4 shots=$5 csc=$6
shift 6

for seed in ${SEEDS:-1 2 3}; do
    run "$OUTPUT/$dataset/CoOp/${config}_${shots}shots/nctx${n_ctx}_csc${csc}_ctp${position}/seed$seed" \
        --trainer CoOp \
        --seed "$seed" \
        --dataset-config-file "configs/datasets/$dataset.yaml" \
        --config-file "configs/trainers/CoOp/$config.yaml" \
        TRAINER.COOP.N_CTX "$n_ctx" \
        TRAINER.COOP.CSC "$csc" \
        TRAINER.COOP.CLASS_TOKEN_POSITION "$position" \
        DATASET.NUM_SHOTS "$shots" "$@"
done
