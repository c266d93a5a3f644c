#!/usr/bin/env bash
# Transfer to other data sets and to ImageNet's variants: trains on ImageNet.
#   bash scripts/cocoop/xd_train.sh SEED [KEY VALUE ...]
# Then xd_test.sh for each data set, and python tools/results_table.py output/evaluation.
# From the environment: DATA, OUTPUT, TRAINER (CoCoOp), CFG (vit_b16_c4_ep10_batch1_ctxv1), SHOTS (16).
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,5p' "$0"; exit 2; }
cd "$(dirname "$0")/../.."
. scripts/common.sh
seed=$1
trainer=${TRAINER:-CoCoOp} config=${CFG:-vit_b16_c4_ep10_batch1_ctxv1} shots=${SHOTS:-16}
shift
case $trainer in
    # Zero-shot methods train nothing: they are tested, with the same result for every seed.
    Zeroshot*) folder=$trainer/${config}_0shots seed=1 shots=0 mode=--eval-only ;;
    *) folder=$trainer/${config}_${shots}shots/seed$seed mode= ;;
esac

run "$OUTPUT/imagenet/$folder" \
    --trainer "$trainer" \
    --seed "$seed" \
    --dataset-config-file configs/datasets/imagenet.yaml \
    --config-file "$(find_config "$trainer" "$config")" \
    $mode \
    DATASET.NUM_SHOTS "$shots" "$@"
