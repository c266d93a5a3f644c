# Sourced by the scripts: the active Python environment, or else .venv (made on first use), with the packages of
# requirements.txt. PYTHON names the interpreter that makes it (python3). Conda's base, which is active in every shell
# of many people, is nobody's environment for this.
if [ -z "${VIRTUAL_ENV:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" = base ]; then
    [ -x .venv/bin/pip ] || "${PYTHON:-python3}" -m venv .venv
    . .venv/bin/activate
fi
installed=${VIRTUAL_ENV:-${CONDA_PREFIX:-.venv}}/coop-dassl-requirements.txt  # what this has installed there
if ! cmp -s requirements.txt "$installed"; then
    echo "Installing the packages in requirements.txt, which takes a few minutes" >&2
    python -m pip install --quiet --disable-pip-version-check -r requirements.txt
    cp requirements.txt "$installed" 2>/dev/null || true  # an environment of somebody else: checked each time
fi
