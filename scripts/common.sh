# Sourced by the scripts that start runs, after their cd to the repository. From the environment: DATA (./data) and
# OUTPUT (./output); if given and relative, they are taken from the folder in which the script was called.
. scripts/env.sh
from_caller() {
    case $1 in
        /* | [A-Za-z]:*) echo "$1" ;;
        *) echo "$OLDPWD/$1" ;;
    esac
}
DATA=$([ -z "${DATA:-}" ] && echo ./data || from_caller "$DATA")
OUTPUT=$([ -z "${OUTPUT:-}" ] && echo ./output || from_caller "$OUTPUT")

# run DIR ARGUMENTS...: train.py into DIR, unless the finished run of the same command is there.
run() {
    local dir=$1
    shift
    python train.py --skip-finished --root "$DATA" --output-dir "$dir" "$@"
}
