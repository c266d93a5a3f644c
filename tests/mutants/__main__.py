"""Small slips in code that decides results, put in one at a time: does a test notice?

    python -m tests.mutants              # all; one process a core
    python -m tests.mutants best resume  # those whose names contain one of the words

slips.yaml lists them: what is wrong then, the file, the text that is replaced (it is there once) and by what, and the
tests that are to fail. Each slip goes into a copy of the repository without ../shared, so that what is noticed is
noticed anywhere. The exit code is 1 if a slip is not noticed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import yaml

from tests.common import REPOSITORY

PYTEST = (sys.executable, "-m", "pytest")
SLIPS = Path(__file__).with_name("slips.yaml")
PATIENCE = 1200  # seconds; tests that a slip keeps from ending have noticed it
FAILURE = re.compile(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Slip:
    slip: str  # what is wrong
    file: str
    old: str
    new: str
    tests: str  # files, or tests in them

    def put_into(self, folder: Path) -> str:
        """Put it into the copy of the repository in ``folder``; returns the file as it was."""
        path = folder / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(f"{self.slip}: in {self.file} the text is there {text.count(self.old)} times: {self.old}")
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")
        return text


def read_slips(path: Path = SLIPS) -> list[Slip]:
    return [Slip(**entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8"))]


def copy_repository(folder: Path) -> None:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)


def failing_test(folder: Path, tests: Sequence[str], processes: int = 0) -> str:
    """The first of the tests that fails in the copy in ``folder``; empty if all pass. ``processes`` beside this one run
    them; ``RuntimeError`` if they cannot be run."""
    command = [*PYTEST, "-x", "-q", "-p", "no:cacheprovider", "-n", str(processes), "--dist", "loadfile", *tests]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return f"no test, but they did not end within {PATIENCE} s"
    failure = FAILURE.search(done.stdout)
    if done.returncode not in (0, 1) or bool(failure) != bool(done.returncode):
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout[-3000:]}{done.stderr}")
    return failure[1] if failure else ""


def run(slips: Sequence[Slip], jobs: int) -> int:
    """Print for each slip which test noticed it; returns how many were noticed."""
    noticed = 0
    with tempfile.TemporaryDirectory(prefix="mutants.") as temporary, ThreadPoolExecutor(jobs) as pool:
        copies: Queue[Path] = Queue()
        for number in range(jobs):
            copy_repository(Path(temporary, str(number)))
            copies.put(Path(temporary, str(number)))
        every_test = sorted({test for slip in slips for test in slip.tests.split()})
        if failure := failing_test(Path(temporary, "0"), every_test, jobs):
            raise RuntimeError(f"without any slip there is a test that fails: {failure}")

        def attempt(slip: Slip) -> tuple[Slip, str, float]:
            start, copy = time.time(), copies.get()
            before = slip.put_into(copy)
            try:
                return slip, failing_test(copy, slip.tests.split()), time.time() - start
            finally:
                (copy / slip.file).write_text(before, encoding="utf-8")
                copies.put(copy)

        for slip, test, seconds in pool.map(attempt, slips):
            noticed += bool(test)
            verdict = f"noticed by {test}" if test else "NOT NOTICED"
            print(f"{verdict}, {seconds:.0f} s: {slip.slip}", flush=True)
    return noticed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="of the names of slips")
    parser.add_argument("--slips", type=Path, default=SLIPS, help="another list")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="slips at a time")
    args = parser.parse_args(argv)
    slips = [s for s in read_slips(args.slips) if not args.words or any(word in s.slip for word in args.words)]
    if not slips:
        parser.error(f"no slip's name contains {' or '.join(args.words)}")  # pytest would take no test for all of them
    noticed = run(slips, args.jobs)
    print(f"{noticed} of {len(slips)} slips noticed")
    return int(noticed < len(slips))


if __name__ == "__main__":
    sys.exit(main())
