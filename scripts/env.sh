# Sourced by the scripts: uses the active Python environment, or else .venv (created on first use), and installs
# requirements.txt in it. PYTHON names the interpreter that creates .venv (python3). Conda's base environment is not
# used: many people have it active in every shell for other purposes.
if [ -z "${VIRTUAL_ENV:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" = base ]; then
    [ -x .venv/bin/pip ] || "${PYTHON:-python3}" -m venv .venv
    . .venv/bin/activate
fi
installed=${VIRTUAL_ENV:-${CONDA_PREFIX:-.venv}}/coop-dassl-requirements.txt  # the requirements installed last
if ! cmp -s requirements.txt "$installed"; then
    echo "Installing the packages in requirements.txt, which takes a few minutes" >&2
    python -m pip install --quiet --disable-pip-version-check -r requirements.txt || {
        echo "The packages are not installed. In China, a mirror is quicker:" \
            "export PIP_INDEX_URL=https://pypi.tuna.tsinghua.edu.cn/simple, then the same command" >&2
        exit 1
    }
    cp requirements.txt "$installed" 2>/dev/null || true  # a read-only environment: pip checks it each time
fi
