"""Environment variables for the tests of this folder."""

import os

os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  by default, workers yield to other tests
