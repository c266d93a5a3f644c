"""Run the tests as on a Windows laptop in China, on Linux.

    python -m tests.windows                             # all tests that run on Windows; one process per core
    python -m tests.windows -n 0 tests/test_train.py    # arguments go to pytest

simulation.py says what is simulated. The home folder, and in it the folder for temporary files, has a Chinese name.
Programs that the tests start inherit all of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.common import REPOSITORY

SIMULATION = Path(__file__).parent
PARALLEL = ("-n", "auto", "--maxprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder")  # as scripts/test.sh


def simulated_environment(home: Path) -> dict[str, str]:
    """Return the environment for programs under the simulation, with ``home`` as the user's folder."""
    for folder in ("AppData", "Temp"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    folders = dict.fromkeys(("HOME", "USERPROFILE"), str(home)) | dict.fromkeys(
        ("TMPDIR", "TEMP", "TMP"), str(home / "Temp")
    )
    paths = [str(SIMULATION), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        **folders,
        "XDG_CACHE_HOME": str(home / "AppData"),
        "PYTHONPATH": os.pathsep.join(paths),
        "SIMULATED_WINDOWS": "1",
    }


def main(argv: list[str] | None = None) -> int:
    """Run pytest under the simulation with the arguments ``argv``; return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    with tempfile.TemporaryDirectory(prefix="windows.") as folder:
        environment = simulated_environment(Path(folder, "张三"))
        command = [sys.executable, "-m", "pytest", *([] if arguments else PARALLEL), *arguments]
        return subprocess.run(command, cwd=REPOSITORY, env={"OMP_NUM_THREADS": "1", **environment}).returncode


if __name__ == "__main__":
    sys.exit(main())
