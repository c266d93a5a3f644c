#!/usr/bin/env bash
# From base to new classes: trains and tests on the base classes (the first half of the classes).
#   bash scripts/cocoop/base2new_train.sh DATASET SEED [KEY VALUE ...]
# Then base2new_test.sh with the same arguments, and python tools/results_table.py output/base2new.
# From the environment: DATA, OUTPUT, TRAINER (CoCoOp), CFG (vit_b16_c4_ep10_batch1_ctxv1), SHOTS (16). For the CoCoOp
# paper's runs of CoOp: TRAINER=CoOp CFG=vit_b16_ep50_ctxv1; for those of zero-shot CLIP: TRAINER=ZeroshotCLIP CFG=vit_b16.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,6p' "$0"; exit 2; }
cd "$(dirname "$0")/../.."
. scripts/common.sh
dataset=$1 seed=$2
trainer=${TRAINER:-CoCoOp} config=${CFG:-vit_b16_c4_ep10_batch1_ctxv1} shots=${SHOTS:-16}
shift 2
case $trainer in
    # Zero-shot methods train nothing: they are tested, with the same result for every seed.
    Zeroshot*) folder=test_base/$dataset/shots_0/$trainer/$config seed=1 shots=0 mode=--eval-only ;;
    *) folder=train_base/$dataset/shots_$shots/$trainer/$config/seed$seed mode= ;;
esac

run "$OUTPUT/base2new/$folder" \
    --trainer "$trainer" \
    --seed "$seed" \
    --dataset-config-file "configs/datasets/$dataset.yaml" \
    --config-file "$(find_config "$trainer" "$config")" \
    $mode \
    DATASET.NUM_SHOTS "$shots" \
    DATASET.SUBSAMPLE_CLASSES base "$@"
