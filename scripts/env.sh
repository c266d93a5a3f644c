# Sourced by the scripts: the active Python environment, or else .venv (made on first use), with the packages of
# requirements.txt. PYTHON names the interpreter that makes it (python3).
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    [ -x .venv/bin/pip ] || "${PYTHON:-python3}" -m venv .venv
    . .venv/bin/activate
fi
python -m pip install --quiet --disable-pip-version-check -r requirements.txt
