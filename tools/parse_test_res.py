"""Print mean results over the seeds of an experiment, with Dassl's command line and output.

    python tools/parse_test_res.py output/digits/CoOp/tiny_16shots             # has the folders seed1, seed2, …
    python tools/parse_test_res.py output/digits/CoOp --multi-exp              # every experiment below the folder
    python tools/parse_test_res.py output/evaluation/… --test-log              # logs of --eval-only runs

The mean is over the seeds that the records (result.json) have. Two records of one seed or of one model, or records
whose settings differ, are named and not averaged. Logs without a record, as the original CoOp writes them, count as
they are.

``--ci95`` prints the half-width of the 95% interval (Student's t) instead of the standard deviation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.engine.record import RECORD_FILE
from dassl.log_format import read_result
from dassl.utils import UserError, command_line, listdir_nohidden
from studies.tables.cells import ci95_half_width
from studies.tables.runs import (
    ARITHMETIC,
    REPETITIONS,
    find_differences,
    format_differences,
    format_repetition,
    group_repetitions,
    read_run,
)


def parse_directory(directory: Path, keyword: str, test_log: bool, ci95: bool) -> float:
    """Print the result of each sub-folder (seed) of ``directory`` and their mean, in percent; return the mean.

    Sub-folders without a result do not count and are named on standard error.

    Args:
        keyword: metric in the logs, such as "accuracy".
        test_log: True for logs of ``--eval-only`` runs.
        ci95: True to print the half-width of the 95% interval instead of the standard deviation.

    Raises:
        UserError: no sub-folder has a result; the message gives the reason for each. Or the results do not belong
            together (``check_runs``).
    """
    print(f"Parsing files in {directory}")
    values, missing, folders = [], [], []
    for name in listdir_nohidden(directory, sort=True):
        log = directory / name / "log.txt"
        value = read_result(log, keyword, test_log) if log.is_file() else None
        if value is not None:
            values.append(value)
            folders.append(log.parent)
            print(f"file: {log}. {keyword}: {value:.2f}%. ")
        elif log.parent.is_dir():
            hint = "" if test_log else " after the end of training (for --eval-only runs: --test-log)"
            missing.append(f"{log.parent}: {f'the log has no {keyword}{hint}' if log.is_file() else 'no log.txt'}")
    if not values:
        reasons = "\n  ".join(missing or ["it has no sub-folders; give the folder that holds seed1, seed2, …"])
        raise UserError(f"no results in {directory}\n  {reasons}")
    for line in missing:
        print(f"note: left out {line}", file=sys.stderr)
    check_runs(folder for folder in folders if (folder / RECORD_FILE).is_file())
    mean, spread = np.mean(values), ci95_half_width(values) if ci95 else np.std(values)
    print(f"===\nSummary of directory: {directory}\n* {keyword}: {mean:.2f}% +- {spread:.2f}%\n===")
    return float(mean)


def check_runs(folders: Iterable[Path]) -> None:
    """Raise ``UserError`` if two of the runs have one seed or model, or their settings differ.

    Differing arithmetic is named on standard error.
    """
    runs = [read_run(folder) for folder in folders]
    for name in REPETITIONS:
        if problems := [format_repetition(group) for group in group_repetitions(runs, name) if len(group) > 1]:
            raise UserError(f"not averaged, as a {name} has several records: {'; '.join(problems)}")
    if differences := find_differences(runs):
        raise UserError(f"not averaged, as the settings differ: {format_differences(runs, differences)}")
    sums = [run.facts[ARITHMETIC] for run in runs]
    if len(set(sums)) > 1:
        print(f"note: {ARITHMETIC} differ: {format_differences(runs, {ARITHMETIC: sums})}", file=sys.stderr)


@command_line()
def main(argv: list[str] | None = None) -> None:
    """Print the results of one experiment, or with ``--multi-exp`` of all in a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="folder of the experiment")
    parser.add_argument("--ci95", action="store_true", help="95%% interval instead of the standard deviation")
    parser.add_argument("--test-log", action="store_true", help="parse logs of --eval-only runs")
    parser.add_argument("--multi-exp", action="store_true", help="the folder has several experiments")
    parser.add_argument("--keyword", default="accuracy", help="accuracy, error or macro_f1")
    args = parser.parse_args(argv)
    if not args.directory.is_dir():
        raise UserError(f"no folder {args.directory}")
    if not args.multi_exp:
        parse_directory(args.directory, args.keyword, args.test_log, args.ci95)
        return
    folders = [args.directory / name for name in listdir_nohidden(args.directory, sort=True)]
    means = [parse_directory(folder, args.keyword, args.test_log, args.ci95) for folder in folders if folder.is_dir()]
    if not means:
        raise UserError(f"no experiments in {args.directory}")
    print(f"Average performance\n* {args.keyword}: {np.mean(means):.2f}%")


if __name__ == "__main__":
    sys.exit(main())
