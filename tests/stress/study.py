"""A sweep and its table, as scripts/quickstart.sh makes them."""

from __future__ import annotations

from pathlib import Path

from tests.stress.kills import write_sweep
from tools import results_table, sweep


def main(argv: list[str]) -> int:
    """``argv``: the folder of it all, and how many runs at a time."""
    folder, jobs = Path(argv[0]), argv[1]
    write_sweep(folder / "sweep.yaml")
    output = folder / "output"
    words = [folder / "sweep.yaml", "--root", folder.parent / "data", "--output-dir", output, "--jobs", jobs]
    code = sweep.main([*map(str, words), "FEATURES.CACHE_DIR", str(folder.parent / "cache")])
    return code or results_table.main([str(output)])
