"""How much the tests in this folder try. By default a few cases of each kind, the same ones each time; with
FUZZ_PROFILE=stress a hundred, others each time. Where FUZZ_CASES names a file, the number of cases is appended to it, a
line of each process."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, configuration, settings

from tests.fuzz.cases import COUNTS

configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir(), "hypothesis"))  # else .hypothesis, beside us
ci = {"max_examples": 15, "derandomize": True, "deadline": None, "database": None}
settings.register_profile("ci", suppress_health_check=list(HealthCheck), **ci)
settings.register_profile("stress", settings.get_profile("ci"), max_examples=100, derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("FUZZ_PROFILE", "ci"))


def pytest_sessionfinish() -> None:
    if (path := os.environ.get("FUZZ_CASES")) and COUNTS["cases"]:
        with open(path, "a") as file:
            file.write(f"{COUNTS['cases']}\n")
