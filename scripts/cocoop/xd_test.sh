#!/usr/bin/env bash
# Transfer: tests the models of xd_train.sh on another data set, or on a variant of ImageNet.
#   bash scripts/cocoop/xd_test.sh DATASET SEED [KEY VALUE ...]
# From the environment: DATA, OUTPUT, TRAINER (CoCoOp), CFG (vit_b16_c4_ep10_batch1_ctxv1), SHOTS (16), LOADEP (the last
# epoch).
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,5p' "$0"; exit 2; }
cd "$(dirname "$0")/../.."
. scripts/common.sh
dataset=$1 seed=$2
trainer=${TRAINER:-CoCoOp} config=${CFG:-vit_b16_c4_ep10_batch1_ctxv1}
setting=$trainer/${config}_${SHOTS:-16}shots
folder=$setting/$dataset/seed$seed model=$OUTPUT/imagenet/$setting/seed$seed
shift 2
case $trainer in
    Zeroshot*) folder=$trainer/${config}_0shots/$dataset seed=1 model= ;;  # there is no trained model
esac

run "$OUTPUT/evaluation/$folder" \
    --trainer "$trainer" \
    --seed "$seed" \
    --dataset-config-file "configs/datasets/$dataset.yaml" \
    --config-file "$(find_config "$trainer" "$config")" \
    ${model:+--model-dir "$model"} \
    ${LOADEP:+--load-epoch "$LOADEP"} \
    --eval-only "$@"
