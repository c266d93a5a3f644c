"""Repeat a finished run from its record alone, and compare the results.

    python tools/rerun.py output/digits/CoOp/tiny_16shots/seed1/result.json
    python tools/rerun.py RESULT.json --output-dir output/again --root /data    # the data were moved
    python tools/rerun.py RESULT.json --model-dir output/there                  # the evaluated run was moved
    python tools/rerun.py RESULT.json FEATURES.ENABLED False                    # KEY VALUE pairs change a setting

The record gives the config, --eval-only, --model-dir, --load-epoch and the number of threads. Relative paths start from
the current folder. Data, class names, weights or checkpoints that have changed since the run are refused before
training. Exit codes: 0 the same results, and the same tensors where both runs have checkpoints; 1 different ones; 2 a
user error that the message explains.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.utils import UserError, command_line
from studies.rerun import rerun


@command_line()
def main(argv: list[str] | None = None) -> int:
    """Repeat the run that the command line names, compare the results, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("record", type=Path, metavar="RESULT.json", help="record of a finished run, or the run's folder")
    add("--output-dir", type=Path, help="new folder (rerun in the run's folder, where no table looks)")
    add("--root", default="", help="folder of the data sets, if it was moved")
    add("--model-dir", default="", help="folder of the evaluated run, if it was moved")
    add("--anyway", action="store_true", help="accept changed data, class names, weights or checkpoints")
    add("opts", nargs="*", metavar="KEY VALUE", help="config overrides")
    args = parser.parse_intermixed_args(argv)
    source = args.record if args.record.is_dir() else args.record.parent
    folder = args.output_dir or source / "rerun"
    if folder.exists() and not (folder.is_dir() and not os.listdir(folder)):
        raise UserError(f"{folder} is there already: name another --output-dir, or remove it")
    return rerun(source, folder, args.root, args.model_dir, args.opts, args.anyway)


if __name__ == "__main__":
    sys.exit(main())
