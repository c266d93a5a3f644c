#!/usr/bin/env bash
# Evaluates contexts learned on ImageNet (scripts/coop/main.sh imagenet CONFIG end 16 16 False) on another data set:
#   bash scripts/coop/eval.sh DATASET CONFIG
# From the environment: DATA, OUTPUT, SEEDS ("1 2 3"), SHOTS (16), NCTX (16), CSC (False), CTP (end), EPOCH (the last).
set -euo pipefail
[ $# = 2 ] || { sed -n '2,4p' "$0"; exit 2; }
cd "$(dirname "$0")/../.."
. scripts/common.sh
dataset=$1 config=$2
n_ctx=${NCTX:-16} csc=${CSC:-False} position=${CTP:-end}
setting=${config}_${SHOTS:-16}shots/nctx${n_ctx}_csc${csc}_ctp${position}

for seed in ${SEEDS:-1 2 3}; do
    run "$OUTPUT/evaluation/CoOp/$setting/$dataset/seed$seed" \
        --trainer CoOp \
        --seed "$seed" \
        --dataset-config-file "configs/datasets/$dataset.yaml" \
        --config-file "configs/trainers/CoOp/$config.yaml" \
        --model-dir "$OUTPUT/imagenet/CoOp/$setting/seed$seed" \
        ${EPOCH:+--load-epoch "$EPOCH"} \
        --eval-only \
        TRAINER.COOP.N_CTX "$n_ctx" \
        TRAINER.COOP.CSC "$csc" \
        TRAINER.COOP.CLASS_TOKEN_POSITION "$position"
done
