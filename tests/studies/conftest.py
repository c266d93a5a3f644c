"""Ray's workers, beside other tests."""

import os

os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  else the other tests go first
