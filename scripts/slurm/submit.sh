#!/usr/bin/env bash
# Submits a sweep to Slurm: each unfinished run is a task of an array. Runs that evaluate models of other runs are a
# second array, which starts when the first has ended. A run whose model is missing then fails; the other runs go on.
#   bash scripts/slurm/submit.sh CONFIG.yaml [--root DATA] [--seeds 1,2,3] [KEY VALUE ...]     # as tools/sweep.py
#   SBATCH="--partition=cpu --mem=16G" AT_ONCE=20 bash scripts/slurm/submit.sh configs/sweeps/base_to_new.yaml
# When no task is queued any more, the same command submits the runs that are still unfinished. Transcripts are in
# output/slurm and in each run's log.txt. From the environment: SBATCH (options of sbatch that override those in
# scripts/slurm/sweep.sbatch), AT_ONCE (tasks of an array that run at a time).
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,8p' "$0"; exit 2; }
cd "$(dirname "$0")/../.."
. scripts/env.sh
mkdir -p output/slurm

size=$(scontrol show config | awk '$1 == "MaxArraySize" {print $3}')
arrays=$(python tools/sweep.py "$@" --arrays="$size")
[ -n "$arrays" ] || { echo "all runs are finished"; exit 0; }
stage='' jobs='' wait=''
while read -r array_stage first indices; do
    [ "$array_stage" = "$stage" ] || { stage=$array_stage wait=${jobs:+--dependency=afterany$jobs} jobs=''; }
    # shellcheck disable=SC2086  SBATCH holds several options
    job=$(sbatch --parsable ${SBATCH:-} $wait --array="$indices${AT_ONCE:+%$AT_ONCE}" --export="ALL,FIRST=$first" \
        scripts/slurm/sweep.sbatch "$@")
    jobs+=":${job%%;*}"
    echo "job ${job%%;*}: runs $first + $indices${wait:+, after ${wait##*afterany:}}"
done <<<"$arrays"
