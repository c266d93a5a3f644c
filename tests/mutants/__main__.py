"""Mutation testing: small slips go into the code one at a time, and a test must notice each.

    python -m tests.mutants              # all slips; one process per core
    python -m tests.mutants best resume  # the slips whose sentence contains one of the words

slips.yaml lists the slips: a sentence about the wrong behaviour, a file, a text that the file contains once, the text
that replaces it, and the tests that must fail. A slip goes into a copy of the repository without ../shared, since a
clone must notice it, too. The exit code is 1 if no test notices a slip.
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
TIMEOUT = 1200  # seconds, far more than the tests of any slip take: a slip that makes tests endless is noticed
FAILURE_PATTERN = re.compile(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - .*)?$", re.MULTILINE)  # in pytest's summary


@dataclass(frozen=True)
class Slip:
    """An entry of slips.yaml.

    Attributes:
        slip: a sentence about the wrong behaviour.
        file: path of the changed file in the repository.
        old: the text that is replaced.
        new: the text that replaces it.
        tests: test files, or tests in them, that must fail; separated by spaces.
    """

    slip: str
    file: str
    old: str
    new: str
    tests: str

    def apply(self, folder: Path) -> str:
        """Change the file in the copy of the repository in ``folder``; return the file's original text.

        Raises:
            ValueError: the file does not contain ``old`` exactly once.
        """
        path = folder / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(f"{self.slip}: {self.file} has this text {text.count(self.old)} times: {self.old}")
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")
        return text


def read_slips(path: Path = SLIPS) -> list[Slip]:
    """Return the entries of a list of slips."""
    return [Slip(**entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8"))]


def copy_repository(folder: Path) -> None:
    """Copy the files of the working tree that git does not ignore into ``folder``."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)


def find_failing_test(folder: Path, tests: Sequence[str], workers: int = 0) -> str:
    """Run tests in the copy of the repository in ``folder`` until one fails; return its name, or an empty text.

    Args:
        workers: processes of pytest-xdist; 0: pytest's process runs the tests.

    Raises:
        RuntimeError: pytest did not run the tests.
    """
    command = [*PYTEST, "-x", "-q", "-p", "no:cacheprovider", "-n", str(workers), "--dist", "loadfile", *tests]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"no test, but they did not end within {TIMEOUT} s"
    failure = FAILURE_PATTERN.search(result.stdout)
    if result.returncode not in (0, 1) or bool(failure) != bool(result.returncode):
        output = f"{result.stdout[-3000:]}{result.stderr}"
        raise RuntimeError(f"{' '.join(command)} ended with {result.returncode}\n{output}")
    return failure[1] if failure else ""


def try_slips(slips: Sequence[Slip], jobs: int) -> int:
    """Test the slips, ``jobs`` at a time, and print which test noticed each; return the number of noticed slips.

    Raises:
        RuntimeError: a test fails without any slip.
    """
    noticed = 0
    with tempfile.TemporaryDirectory(prefix="mutants.") as temporary, ThreadPoolExecutor(jobs) as pool:
        copies: Queue[Path] = Queue()
        for number in range(jobs):
            copy_repository(Path(temporary, str(number)))
            copies.put(Path(temporary, str(number)))
        all_tests = sorted({test for slip in slips for test in slip.tests.split()})
        if failure := find_failing_test(Path(temporary, "0"), all_tests, jobs):
            raise RuntimeError(f"a test fails without any slip: {failure}")

        def try_slip(slip: Slip) -> tuple[Slip, str, float]:
            """Test a slip in a free copy; return the slip, the test that noticed it or an empty text, and seconds."""
            start, copy = time.time(), copies.get()
            original = slip.apply(copy)
            try:
                return slip, find_failing_test(copy, slip.tests.split()), time.time() - start
            finally:
                (copy / slip.file).write_text(original, encoding="utf-8")
                copies.put(copy)

        for slip, test, seconds in pool.map(try_slip, slips):
            noticed += bool(test)
            verdict = f"noticed by {test}" if test else "NOT NOTICED"
            print(f"{verdict}, {seconds:.0f} s: {slip.slip}", flush=True)
    return noticed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="test the slips whose sentence contains one of them")
    parser.add_argument("--slips", type=Path, default=SLIPS, help="the list of slips")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="slips at a time")
    args = parser.parse_args(argv)
    slips = [s for s in read_slips(args.slips) if not args.words or any(word in s.slip for word in args.words)]
    if not slips:
        parser.error(f"no slip's sentence contains {' or '.join(args.words)}")  # without tests, pytest runs all
    noticed = try_slips(slips, args.jobs)
    print(f"{noticed} of {len(slips)} slips noticed")
    return int(noticed < len(slips))


if __name__ == "__main__":
    sys.exit(main())
