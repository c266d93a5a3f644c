#!/usr/bin/env bash
# Zero-shot CLIP: bash scripts/coop/zeroshot.sh DATASET CONFIG
#   bash scripts/coop/zeroshot.sh imagenet rn50
# From the environment: DATA, OUTPUT.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/common.sh
[ $# = 2 ] || { sed -n '2,4p' "$0"; exit 2; }
dataset=$1 config=$2

run "$OUTPUT/$dataset/ZeroshotCLIP/$config" \
    --trainer ZeroshotCLIP \
    --seed 1 \
    --dataset-config-file "configs/datasets/$dataset.yaml" \
    --config-file "configs/trainers/CoOp/$config.yaml" \
    --eval-only
