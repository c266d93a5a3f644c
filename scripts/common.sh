# Sourced by the scripts that start runs, after their cd to the repository. From the environment: DATA (./data) and
# OUTPUT (./output); relative paths start from the folder in which the script was called.
. scripts/env.sh

# from_caller PATH: prints PATH, relative to the folder of the call, as an absolute path.
from_caller() {
    case $1 in
        /* | [A-Za-z]:*) echo "$1" ;;
        *) echo "$OLDPWD/$1" ;;
    esac
}
DATA=$([ -z "${DATA:-}" ] && echo ./data || from_caller "$DATA")
OUTPUT=$([ -z "${OUTPUT:-}" ] && echo ./output || from_caller "$OUTPUT")

# find_config TRAINER NAME: prints the trainer's config file NAME.yaml; if it has none, CoOp's.
find_config() {
    local file=configs/trainers/$1/$2.yaml
    [ -f "$file" ] || file=configs/trainers/CoOp/$2.yaml
    echo "$file"
}

# run DIR ARGUMENTS...: runs train.py with output folder DIR, unless DIR holds a finished run of the same command.
run() {
    local dir=$1
    shift
    python train.py --skip-finished --root "$DATA" --output-dir "$dir" "$@"
}
