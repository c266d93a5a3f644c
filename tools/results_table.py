"""The study's table: zero-shot CLIP against CoOp with 16 and with 4 context tokens, from the logs of the runs.

    python tools/results_table.py output/digits        # writes results.md, results.csv, results.png there

Cells are read from ``ZeroshotCLIP`` and ``CoOp/<config>_<shots>shots[_ctx<tokens>]``, each a run's folder or a folder
of seed1, seed2, … that are averaged (mean ± 95% interval, Student's t). What ``scripts/coop/main.sh`` writes
(``CoOp/<config>_<shots>shots/nctx<tokens>_csc…_ctp…/seed<n>``) is read too. A ``*`` marks the cells whose runs took a
shortcut with the image features (FEATURES.VIEWS, FEATURES.PREC).
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.config.merge import leaves
from dassl.utils import UserError, atomic_write, command_line, nearest
from dassl.utils.results import RECORD, interval95, read_record, read_result

SHOTS = (0, 1, 2, 4, 8, 16)
STANDARD, EFFICIENT = 16, 4  # context tokens
ZERO_SHOT = "Zero-shot CLIP"
ALIGN = ["left"] + ["right"] * len(SHOTS)
ROWS = {ZERO_SHOT: None, "CoOp (Standard)": STANDARD, "CoOp (Efficient)": EFFICIENT}
PAR = 1.0  # percentage points of mean difference that still count as "on a par"
RUN = re.compile(r"(?P<config>.+)_(?P<shots>\d+)shots(_ctx(?P<n_ctx>\d+))?")
DTYPES = {"bf16": "bfloat16"}
VARIANT = "nctx{}_cscFalse_ctpend"  # main.sh's folder of the study's setting


@dataclass
class Cell:
    """The accuracies of one cell, one a seed, why runs are missing, and what else their records tell."""

    accuracies: list[float] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    weights: set[str] = field(default_factory=set)
    shortcuts: Counter[str] = field(default_factory=Counter)  # and how many of the runs took each

    @property
    def mean(self) -> float:
        return statistics.mean(self.accuracies)

    def __str__(self) -> str:
        if not self.accuracies:
            return "-"
        spread = f" ± {interval95(self.accuracies):.2f}" if len(self.accuracies) > 1 else ""
        return f"{self.mean:.2f}{spread}{'*' if self.shortcuts else ''}"


def read_cell(folder: Path, shots: int, n_ctx: int | None) -> Cell:
    """The runs in ``folder``: those in its seed folders, or the one in the folder itself.

    A run whose record tells of other settings than the cell's (``n_ctx`` None: zero-shot) is not taken.
    """
    cell, evaluated_only = Cell(), n_ctx is None
    for run in sorted(folder.glob("seed*")) or [folder]:
        log = run / "log.txt"
        if not log.is_file():
            cell.missing.append(f"{run}: no log.txt")
            continue
        accuracy = read_result(log, test_log=evaluated_only)
        if accuracy is None:
            cell.missing.append(f"{run}: {'no result in the log' if evaluated_only else 'the run has not ended'}")
            continue
        if (run / RECORD).is_file():
            record = read_record(run)
            if reason := _misplaced(record, shots, n_ctx):
                cell.missing.append(f"{run}: {reason}")
                continue
            cell.weights.add(_weights(record))
            cell.shortcuts.update(_shortcuts(record, trained=not evaluated_only))
        cell.accuracies.append(accuracy)
    return cell


def _misplaced(record: dict, shots: int, n_ctx: int | None) -> str:
    """Why a run does not belong in the cell that its folder names; empty if it does."""
    leaves_of = dict(leaves(record.get("config") or {}))
    expected = {"TEST.SPLIT": "test"}
    if n_ctx is not None:
        expected["DATASET.NUM_SHOTS"] = shots
        if not leaves_of.get("TRAINER.COOP.CTX_INIT"):  # its words set the number of tokens
            expected["TRAINER.COOP.N_CTX"] = n_ctx
    wrong = [f"{key} {leaves_of[key]}" for key, value in expected.items() if leaves_of.get(key, value) != value]
    return f"its record says {', '.join(wrong)}" if wrong else ""


def _weights(record: dict) -> str:
    weights = record.get("weights")
    if not isinstance(weights, dict):
        return "not recorded"
    return f"{weights.get('backbone')}, SHA-256 {str(weights.get('sha256'))[:16]}…"


def _shortcuts(record: dict, trained: bool) -> list[str]:
    """The settings of a run that trade the original's image features for speed; old records have none."""
    config = dict(leaves(record.get("config") or {}))
    found = []
    if trained and (views := config.get("FEATURES.VIEWS")):
        epochs = "every epoch" if views == 1 else f"{views} epochs"
        found.append(f"FEATURES.VIEWS {views}: training images repeat their random draws after {epochs}.")
    if precision := config.get("FEATURES.PREC"):
        found.append(f"FEATURES.PREC {precision}: image features in {DTYPES.get(precision, precision)}.")
    return found


def choose_config(folder: Path, wanted: str) -> str:
    """The config (``rn50``, ``tiny``) whose CoOp runs make the table; without ``wanted`` there must be one only."""
    runs = (RUN.fullmatch(path.name) for path in sorted((folder / "CoOp").glob("*shots*")))
    configs = sorted({match["config"] for match in runs if match})
    if wanted and configs and wanted not in configs:
        raise UserError(f"no runs of config {wanted} in {folder / 'CoOp'}; {nearest(wanted, configs)}")
    if not wanted and len(configs) > 1:
        raise UserError(f"{folder / 'CoOp'} has runs of several configs; choose with --config: {', '.join(configs)}")
    return wanted or (configs[0] if configs else "<config>")


def collect(folder: Path, config: str) -> dict[tuple[str, int], Cell]:
    """(row, shots) -> cell, for every cell of the table."""
    zero = folder / "ZeroshotCLIP"
    zero = zero / config if (zero / config).is_dir() else zero
    cells = {(ZERO_SHOT, 0): read_cell(zero, 0, None)}
    for row, n_ctx in ROWS.items():
        for shots in SHOTS[1:] if n_ctx else ():
            name = f"{config}_{shots}shots"
            run = folder / "CoOp" / (name if n_ctx == STANDARD else f"{name}_ctx{n_ctx}")
            variant = folder / "CoOp" / name / VARIANT.format(n_ctx)
            cells[row, shots] = read_cell(variant if any(variant.glob("seed*/log.txt")) else run, shots, n_ctx)
    return cells


def to_frame(cells: dict[tuple[str, int], Cell]):
    """The table as text: rows of methods, columns of shots, ``-`` where there is nothing."""
    import pandas as pd

    table = [[str(cells.get((row, shots), "-")) for shots in SHOTS] for row in ROWS]
    return pd.DataFrame(table, index=pd.Index(ROWS, name="accuracy (%)"), columns=[_column(shots) for shots in SHOTS])


def _column(shots: int) -> str:
    return f"{shots} shot" if shots == 1 else f"{shots} shots"


def comparison(cells: dict[tuple[str, int], Cell]) -> str:
    """What the efficient setting saves, and what it costs in accuracy."""
    _, standard, efficient = ROWS
    saving = 100 * (1 - EFFICIENT / STANDARD)
    text = f"{efficient} learns {EFFICIENT} context tokens instead of {STANDARD}: {saving:.0f}% fewer parameters. "
    both = [s for s in SHOTS[1:] if cells[standard, s].accuracies and cells[efficient, s].accuracies]
    if not both:
        return text + "No number of shots has both, so their accuracies cannot be compared yet."
    gaps = [cells[efficient, s].mean - cells[standard, s].mean for s in both]
    gap = statistics.mean(gaps)
    verdict = "on a par with" if abs(gap) <= PAR else "lower than" if gap < 0 else "higher than"
    shots = ", ".join(f"{s}: {g:+.2f}" for s, g in zip(both, gaps, strict=True))
    text += f"Its accuracy is {verdict} {standard}'s: {gap:+.2f} points on average (shots {shots})"
    return f"{text}; within {PAR:g} point counts as on a par."


def to_markdown(cells: dict[tuple[str, int], Cell], title: str) -> str:
    lines = [f"# {title}", "", to_frame(cells).to_markdown(colalign=ALIGN), "", comparison(cells)]
    if any(len(cell.accuracies) > 1 for cell in cells.values()):
        lines += ["", "± is the 95% confidence interval of the mean over seeds (Student's t)."]
    lines += _footnotes(cells)
    weights = sorted(set().union(*(cell.weights for cell in cells.values())))
    if weights:
        lines += ["", f"Weights: {'; '.join(weights)}."]
    if len(weights) > 1:
        lines += ["", "**The cells come from different weights and cannot be compared.**"]
    missing = [f"- {row}, {_column(shots)}: {why}" for (row, shots), cell in cells.items() for why in cell.missing]
    if missing:
        lines += ["", "Missing:", "", *missing]
    return "\n".join(lines) + "\n"


def _footnotes(cells: dict[tuple[str, int], Cell]) -> list[str]:
    """A line for each shortcut; it names its cells unless every run of every cell with a ``*`` took it."""
    marked = {place: cell for place, cell in cells.items() if cell.shortcuts}
    lines = []
    for shortcut in sorted(set().union(*(cell.shortcuts for cell in marked.values()))):
        places = []
        for (row, shots), cell in marked.items():
            count, runs = cell.shortcuts[shortcut], len(cell.accuracies)
            if count:
                places.append(f"{row}, {_column(shots)}{f' ({count} of {runs} runs)' if count < runs else ''}")
        everywhere = all(cell.shortcuts[shortcut] == len(cell.accuracies) for cell in marked.values())
        lines += ["", f"\\* {shortcut}" if everywhere else f"\\* {shortcut} In: {'; '.join(places)}."]
    return lines


def plot(cells: dict[tuple[str, int], Cell], title: str, file) -> None:
    """Accuracy against shots, one curve a row, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    zero = cells[ZERO_SHOT, 0]
    if zero.accuracies:
        axes.axhline(zero.mean, color="gray", linestyle="--", label=f"{ZERO_SHOT} ({zero.mean:.2f}%)")
    for row, n_ctx in ROWS.items():
        shots = [s for s in SHOTS[1:] if n_ctx and cells[row, s].accuracies]
        if shots:
            done = [cells[row, s] for s in shots]
            spread = [interval95(c.accuracies) if len(c.accuracies) > 1 else 0 for c in done]
            label = f"{row}, {n_ctx} tokens"
            axes.errorbar(shots, [c.mean for c in done], yerr=spread, marker="o", capsize=3, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(SHOTS[1:], [str(s) for s in SHOTS[1:]])
    axes.set(xlabel="training images per class (shots)", ylabel="test accuracy (%)")
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, format="png", dpi=150)
    plt.close(figure)


@command_line()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the study, such as output/imagenet")
    parser.add_argument("--config", default="", help="the runs to read where there are several: rn50, vit_b16, …")
    args = parser.parse_args(argv)
    if not args.folder.is_dir():
        raise UserError(f"no folder {args.folder}")
    cells = collect(args.folder, choose_config(args.folder, args.config))
    if not any(cell.accuracies for cell in cells.values()):
        raise UserError(f"no finished run in {args.folder}/ZeroshotCLIP or {args.folder}/CoOp/<config>_<shots>shots")
    title = f"Few-shot accuracy on {args.folder.resolve().name}"
    markdown = to_markdown(cells, title)
    with atomic_write(args.folder / "results.md") as file:
        file.write(markdown)
    with atomic_write(args.folder / "results.csv") as file:
        to_frame(cells).to_csv(file)
    with atomic_write(args.folder / "results.png", "wb") as file:
        plot(cells, title, file)
    print(markdown)
    print(f"Written: {args.folder}/results.md, results.csv, results.png")


if __name__ == "__main__":
    sys.exit(main())
