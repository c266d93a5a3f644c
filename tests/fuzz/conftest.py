"""Settings of the fuzzing tests. By default, each test runs the same few cases each time; with FUZZ_PROFILE=stress, a
hundred new cases. Each process appends its number of cases to the file that FUZZ_CASES names, as a line."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, configuration, settings

from tests.fuzz.cases import COUNTS

configuration.set_hypothesis_home_dir(
    Path(tempfile.gettempdir(), "hypothesis")
)  # by default .hypothesis in the repository
ci = {"max_examples": 15, "derandomize": True, "deadline": None, "database": None}
settings.register_profile("ci", suppress_health_check=list(HealthCheck), **ci)
settings.register_profile("stress", settings.get_profile("ci"), max_examples=100, derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("FUZZ_PROFILE", "ci"))


def pytest_sessionfinish() -> None:
    """Append the number of cases to the file that FUZZ_CASES names."""
    if (path := os.environ.get("FUZZ_CASES")) and COUNTS["cases"]:
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{COUNTS['cases']}\n")
