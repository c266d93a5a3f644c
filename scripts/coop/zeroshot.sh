#!/usr/bin/env bash
# Evaluates zero-shot CLIP: bash scripts/coop/zeroshot.sh DATASET CONFIG
#   bash scripts/coop/zeroshot.sh imagenet rn50
#   SUB=new bash scripts/coop/zeroshot.sh imagenet vit_b16     # only on the new classes (SUB=base: the base classes)
# From the environment: DATA, OUTPUT, SUB.
set -euo pipefail
[ $# = 2 ] || { sed -n '2,5p' "$0"; exit 2; }
cd "$(dirname "$0")/../.."
. scripts/common.sh
dataset=$1 config=$2
folder=$dataset/ZeroshotCLIP/$config
[ -z "${SUB:-}" ] || folder=base2new/test_$SUB/$dataset/shots_0/ZeroshotCLIP/$config

run "$OUTPUT/$folder" \
    --trainer ZeroshotCLIP \
    --seed 1 \
    --dataset-config-file "configs/datasets/$dataset.yaml" \
    --config-file "configs/trainers/CoOp/$config.yaml" \
    --eval-only \
    ${SUB:+DATASET.SUBSAMPLE_CLASSES "$SUB"}
