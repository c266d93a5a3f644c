#!/usr/bin/env bash
# From base to new classes: tests the models of base2new_train.sh on the new classes (the second half of the classes).
#   bash scripts/cocoop/base2new_test.sh DATASET SEED [KEY VALUE ...]
# From the environment: DATA, OUTPUT, TRAINER (CoCoOp), CFG (vit_b16_c4_ep10_batch1_ctxv1), SHOTS (16), LOADEP (the last
# epoch).
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,5p' "$0"; exit 2; }
cd "$(dirname "$0")/../.."
. scripts/common.sh
dataset=$1 seed=$2
trainer=${TRAINER:-CoCoOp} config=${CFG:-vit_b16_c4_ep10_batch1_ctxv1} shots=${SHOTS:-16}
setting=$dataset/shots_$shots/$trainer/$config/seed$seed
model=$OUTPUT/base2new/train_base/$setting
shift 2
case $trainer in
    Zeroshot*) setting=$dataset/shots_0/$trainer/$config seed=1 shots=0 model= ;;  # there is no trained model
esac

run "$OUTPUT/base2new/test_new/$setting" \
    --trainer "$trainer" \
    --seed "$seed" \
    --dataset-config-file "configs/datasets/$dataset.yaml" \
    --config-file "$(find_config "$trainer" "$config")" \
    ${model:+--model-dir "$model"} \
    ${LOADEP:+--load-epoch "$LOADEP"} \
    --eval-only \
    DATASET.NUM_SHOTS "$shots" \
    DATASET.SUBSAMPLE_CLASSES new "$@"
