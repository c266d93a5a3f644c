"""Tables from the logs of the runs.

    python tools/results_table.py output/digits        # the study: writes results.md, results.csv, results.png there
    python tools/results_table.py output/base2new      # base_to_new.md, .csv: from base to new classes
    python tools/results_table.py output/evaluation    # transfer.md, .csv: from ImageNet to other data sets

The study is zero-shot CLIP against CoOp with 16 and with 4 context tokens. Its cells are read from ``ZeroshotCLIP`` and
``CoOp/<config>_<shots>shots[_ctx<tokens>]``, each a run's folder or a folder of seed1, seed2, … that are averaged (mean
± 95% interval, Student's t). What ``scripts/coop/main.sh`` writes is read too: ``CoOp/<config>_<shots>shots`` with
folders ``nctx<tokens>_csc…_ctp…/seed<n>``. The other two tables are described in tools/tables/generalisation.py.

A ``*`` marks the cells whose runs took a shortcut with the image features (FEATURES.VIEWS, FEATURES.PREC).
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.utils import UserError, atomic_write, command_line, nearest
from dassl.utils.results import interval95
from tools.tables import generalisation
from tools.tables.cells import Cell, notes, read_cell, runs_in, shots_text

SHOTS = (0, 1, 2, 4, 8, 16)
STANDARD, EFFICIENT = 16, 4  # context tokens
ZERO_SHOT = "Zero-shot CLIP"
ALIGN = ["left"] + ["right"] * len(SHOTS)
ROWS = {ZERO_SHOT: None, "CoOp (Standard)": STANDARD, "CoOp (Efficient)": EFFICIENT}
PAR = 1.0  # percentage points of mean difference that still count as "on a par"
RUN = re.compile(r"(?P<config>.+)_(?P<shots>\d+)shots(_ctx(?P<n_ctx>\d+))?")
VARIANT = "nctx{}_cscFalse_ctpend"  # main.sh's folder of the study's setting


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
    cells = {(ZERO_SHOT, 0): read_cell(runs_in(zero), {}, trained=False)}
    for row, n_ctx in ROWS.items():
        for shots in SHOTS[1:] if n_ctx else ():
            name = f"{config}_{shots}shots"
            run = folder / "CoOp" / (name if n_ctx == STANDARD else f"{name}_ctx{n_ctx}")
            variant = folder / "CoOp" / name / VARIANT.format(n_ctx)
            runs = runs_in(variant if any(variant.glob("seed*/log.txt")) else run)
            expected = {"DATASET.NUM_SHOTS": shots, "TRAINER.COOP.N_CTX": n_ctx}
            cells[row, shots] = read_cell(runs, expected, trained=True)
    return cells


def to_frame(cells: dict[tuple[str, int], Cell]):
    """The table as text: rows of methods, columns of shots, ``-`` where there is nothing."""
    import pandas as pd

    table = [[str(cells.get((row, shots), "-")) for shots in SHOTS] for row in ROWS]
    return pd.DataFrame(table, pd.Index(ROWS, name="accuracy (%)"), [shots_text(shots) for shots in SHOTS])


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
    lines += notes({f"{row}, {shots_text(shots)}": cell for (row, shots), cell in cells.items()})
    return "\n".join(lines) + "\n"


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


def write(folder: Path, name: str, markdown: str, frame, *also: str) -> None:
    """Write ``<name>.md`` and ``<name>.csv`` and print the table; ``also`` names files that are written already."""
    with atomic_write(folder / f"{name}.md") as file:
        file.write(markdown)
    with atomic_write(folder / f"{name}.csv") as file:
        frame.to_csv(file)
    print(markdown)
    print(f"Written: {folder}/{', '.join((f'{name}.md', f'{name}.csv', *also))}")


def study(folder: Path, config: str) -> None:
    """Write the study's table and its plot."""
    cells = collect(folder, config)
    if not any(cell.accuracies for cell in cells.values()):
        raise UserError(f"no finished run in {folder}/ZeroshotCLIP or {folder}/CoOp/<config>_<shots>shots")
    title = f"Few-shot accuracy on {folder.resolve().name}"
    with atomic_write(folder / "results.png", "wb") as file:
        plot(cells, title, file)
    write(folder, "results", to_markdown(cells, title), to_frame(cells), "results.png")


@command_line()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="such as output/digits, output/base2new, output/evaluation")
    parser.add_argument("--config", default="", help="of a study with several: the runs to read (rn50, vit_b16)")
    args = parser.parse_args(argv)
    if not args.folder.is_dir():
        raise UserError(f"no folder {args.folder}")
    table = None if args.config else generalisation.read(args.folder)
    if table:
        write(args.folder, *table)
    else:
        study(args.folder, choose_config(args.folder, args.config))


if __name__ == "__main__":
    sys.exit(main())
