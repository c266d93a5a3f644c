"""Stress tests of the programs, whose counts docs/trust.md quotes; a failure ends them with a traceback.

python -m tests.stress                                # all of it: some 7 minutes on two cores
python -m tests.stress kills --kills 500 --seed 7     # one part, with other numbers
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.common import REPOSITORY

os.environ["OMP_NUM_THREADS"] = "1"  # for each process, as several run at a time
os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"  # it warns of what killed processes did not release


def kills(folder: Path, args: argparse.Namespace) -> str:
    """Kill programs at random moments and resume them."""
    from tqdm import tqdm

    from tests.stress.kills import run

    survived = list(tqdm(run(folder, args.kills, args.seed), total=args.kills, disable=None))
    return f"kills survived: {len(survived)} of {args.kills}"


def disk(folder: Path, args: argparse.Namespace) -> str:
    """Let runs exceed limits on file sizes and fill a disk, and resume them."""
    from tests.stress import full_disk

    ended = [full_disk.file_too_large(folder / name, name) for name in full_disk.LIMITS]
    if full_disk.can_mount(folder):
        ended.append(full_disk.disk_full(folder / "full"))
    else:
        print("  this user may not mount a small disk: one case is left out")
    for end in ended:
        assert end.code == 2, end
        assert re.fullmatch("error: .*\n", end.errors), end
    return f"full disks survived: {len(ended)} of {len(ended)}"


def several(folder: Path, args: argparse.Namespace) -> str:
    """Run several processes at once over one data root and one feature cache."""
    from tests.stress.several import VARIANTS, run

    return f"processes at once: {2 * len(VARIANTS)}, over {run(folder):,} features, each of which was computed once"


def hostile(folder: Path, args: argparse.Namespace) -> str:
    """Give hostile files to the programs."""
    from tests.stress.hostile import CASES, refuse

    for number, name in enumerate(CASES):
        (folder / str(number)).mkdir()
        refuse(folder / str(number), name)
    return f"hostile files refused: {len(CASES)} of {len(CASES)}"


def fuzz(folder: Path, args: argparse.Namespace) -> str:
    """Run the fuzzing tests with many random cases."""
    count = folder / "cases"
    environment = {**os.environ, "FUZZ_PROFILE": "stress", "FUZZ_CASES": str(count)}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "--maxprocesses", "4", "tests/fuzz"]
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True)
    return f"fuzz cases run: {sum(map(int, count.read_text(encoding='utf-8').split())):,}, failures: 0"


TESTS = {test.__name__: test for test in (kills, disk, several, hostile, fuzz)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *TESTS], help="by default, all")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="seed of the moments of the kills")
    args = parser.parse_args()
    for name in args.parts or TESTS:
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"{name}.") as folder:
            print(f"{TESTS[name](Path(folder), args)} ({time.monotonic() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
