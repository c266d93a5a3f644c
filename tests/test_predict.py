"""predict.py as a script."""

import subprocess
import sys

from tests.common import REPOSITORY


def test_help_is_printed_without_importing_torch():
    script = "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules)); import predict; "
    script += "predict.main(['--help'])"
    result = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0
    assert "--classes" in result.stdout
    assert result.stdout.endswith("False\n")
