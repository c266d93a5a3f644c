# Sourced by the scripts that start runs. From the environment: DATA (./data), OUTPUT (./output).
. scripts/env.sh
DATA=${DATA:-./data}
OUTPUT=${OUTPUT:-./output}

# run DIR ARGUMENTS...: train.py into DIR, unless a finished run is there. train.py writes result.json last, so a run
# that crashed half way has none and is done again.
run() {
    local dir=$1
    shift
    if [ -f "$dir/result.json" ]; then
        echo "finished already: $dir"
    else
        python train.py --root "$DATA" --output-dir "$dir" "$@"
    fi
}
