"""The table and the plot of a few-shot study, for ``tools/results_table.py``: rows of methods, columns of shots.

Zero-shot CLIP and CoOp with 16 and with 4 context tokens always have a row. Other methods have one if there are runs:

    <folder>/{ZeroshotCLIP,ZeroshotCLIP2}[/<config>]                            one prompt per class; an ensemble
    <folder>/CoOp/<config>_<shots>shots[_ctx<tokens>][_csc]                     16 tokens without a number
    <folder>/CoOp/<config>_<shots>shots/nctx<tokens>_csc<True or False>_ctpend  what scripts/coop/main.sh writes
    <folder>/{CLIPAdapter,TipAdapter,TipAdapterF,LinearProbe}/<config>_<shots>shots

Each is the folder of a run, or a folder of seed1, seed2, … that are averaged (mean ± 95% interval, Student's t).
"""

from __future__ import annotations

import glob
import re
import statistics
from collections.abc import Iterable
from pathlib import Path

from dassl.utils import UserError, suggest_name
from studies.tables.cells import Cell, format_notes, format_shots, list_runs, read_cell

SHOTS = (0, 1, 2, 4, 8, 16)  # columns: zero-shot, and the shots of the CoOp paper (Zhou et al. 2022, section 4.1)
ZERO_SHOT_ROWS = {"Zero-shot CLIP": "ZeroshotCLIP", "Zero-shot ensemble": "ZeroshotCLIP2"}  # trainer by row
STANDARD_TOKENS, EFFICIENT_TOKENS = 16, 4  # context tokens: CoOp's default, and the length of "a photo of a"
# Row by (context tokens, class-specific): the two settings that the study compares.
COOP_ROWS = {(STANDARD_TOKENS, False): "CoOp (Standard)", (EFFICIENT_TOKENS, False): "CoOp (Efficient)"}
FEATURE_METHODS = {  # trainer by row: methods over CLIP's image features
    "CLIP-Adapter": "CLIPAdapter",
    "Tip-Adapter": "TipAdapter",
    "Tip-Adapter-F": "TipAdapterF",
    "Linear probe": "LinearProbe",
}
REQUIRED_ROWS = ("Zero-shot CLIP", *COOP_ROWS.values())  # in every table, since the study is their comparison
PAR_POINTS = 1.0  # percentage points of mean difference that still count as "on a par"; seeds differ by as much
# Names of run folders: as the sweeps write them, and as scripts/coop/main.sh does inside of these.
RUN_PATTERN = re.compile(r"(?P<config>.+)_(?P<shots>\d+)shots(_ctx(?P<n_ctx>\d+))?(?P<csc>_csc)?")
VARIANT_PATTERN = re.compile(r"nctx(?P<n_ctx>\d+)_csc(?P<csc>True|False)_ctpend")

Table = dict[str, dict[int, Cell]]  # cells of each row by shots, without those that have no runs


def choose_config(folder: Path, config: str) -> str:
    """Return the config (``rn50``, ``tiny``) whose runs make the table: ``config``, or else the only one in ``folder``.

    The names of CoOp's run folders contain the configs; without runs of CoOp, those of the other methods. Without any
    runs, an empty ``config`` becomes ``<config>``.

    Raises:
        UserError: ``folder`` has runs, but none of ``config``; or ``config`` is empty and there are several.
    """
    for trainers in (["CoOp"], FEATURE_METHODS.values()):
        paths = (path for trainer in trainers for path in (folder / trainer).glob("*shots*"))
        if configs := sorted({match["config"] for path in paths if (match := RUN_PATTERN.fullmatch(path.name))}):
            break
    place = folder / "CoOp" if "CoOp" in trainers else folder
    if config and configs and config not in configs:
        raise UserError(f"no runs of config {config} in {place}; {suggest_name(config, configs)}")
    if not config and len(configs) > 1:
        raise UserError(f"{place} has runs of several configs; choose with --config: {', '.join(configs)}")
    return config or (configs[0] if configs else "<config>")


def collect_table(folder: Path, config: str) -> Table:
    """Return the cells, by row and number of shots, from the runs of ``config`` in the study's ``folder``."""
    table: dict[str, dict[int, Cell | None]] = {}
    for row, trainer in ZERO_SHOT_ROWS.items():
        path = folder / trainer / config if (folder / trainer / config).is_dir() else folder / trainer
        table[row] = {0: _read_optional_cell(path, {}, row)}
    for n_ctx, csc in _list_contexts(folder / "CoOp", config):
        row = COOP_ROWS.get((n_ctx, csc)) or f"CoOp, {n_ctx} token{'s' * (n_ctx > 1)}{', CSC' * csc}"
        expected = {"TRAINER.COOP.N_CTX": n_ctx, "TRAINER.COOP.CSC": csc}
        table[row] = {}
        for shots in SHOTS[1:]:
            path = _context_folder(folder / "CoOp" / f"{config}_{shots}shots", n_ctx, csc)
            table[row][shots] = _read_optional_cell(path, {"DATASET.NUM_SHOTS": shots, **expected}, row)
    for row, trainer in FEATURE_METHODS.items():
        paths = {shots: folder / trainer / f"{config}_{shots}shots" for shots in SHOTS[1:]}
        table[row] = {s: _read_optional_cell(path, {"DATASET.NUM_SHOTS": s}, row) for s, path in paths.items()}
    present = {row: {shots: cell for shots, cell in cells.items() if cell} for row, cells in table.items()}
    return {row: cells for row, cells in present.items() if cells}


def _read_optional_cell(folder: Path, expected: dict, row: str) -> Cell | None:
    """Return the cell of the runs in ``folder``; None if it does not exist and ``row`` is not in REQUIRED_ROWS."""
    if row not in REQUIRED_ROWS and not folder.is_dir():
        return None
    return read_cell(list_runs(folder), expected, trained=row not in ZERO_SHOT_ROWS)


def _list_contexts(folder: Path, config: str) -> list[tuple[int, bool]]:
    """Return (context tokens, class-specific) of CoOp's required rows, then of other runs, class-specific ones last."""
    contexts = set()
    for path in folder.glob(f"{glob.escape(config)}_*shots*"):
        if (match := RUN_PATTERN.fullmatch(path.name)) and match["config"] == config and path.is_dir():
            contexts.add((int(match["n_ctx"] or STANDARD_TOKENS), bool(match["csc"])))
            variants = (VARIANT_PATTERN.fullmatch(inner.name) for inner in path.iterdir())
            contexts |= {(int(inner["n_ctx"]), inner["csc"] == "True") for inner in variants if inner}
    return [*COOP_ROWS, *sorted(contexts - set(COOP_ROWS), key=lambda context: (context[1], context[0]))]


def _context_folder(base: Path, n_ctx: int, csc: bool) -> Path:
    """Return the folder of CoOp's runs with ``n_ctx`` context tokens, class-specific ones if ``csc``.

    ``base`` is the folder for 16 tokens that all classes share, ``<config>_<shots>shots``.
    """
    variant = base / f"nctx{n_ctx}_csc{csc}_ctpend"
    if any(variant.glob("seed*/log.txt")):
        return variant
    tokens = "" if n_ctx == STANDARD_TOKENS else f"_ctx{n_ctx}"
    return base.with_name(f"{base.name}{tokens}{'_csc' * csc}")


def to_frame(table: Table):
    """Return the table as a pandas.DataFrame of text: rows of methods, columns of shots and of parameters."""
    import pandas as pd

    texts = [[*(str(c.get(shots, "-")) for shots in SHOTS), format_parameters(c.values())] for c in table.values()]
    return pd.DataFrame(texts, pd.Index(table, name="accuracy (%)"), [*map(format_shots, SHOTS), "parameters"])


def format_parameters(cells: Iterable[Cell]) -> str:
    """Return a row's number of trainable parameters: ``2,048``; ``640 to 10,240`` if it varies; ``-`` if unknown."""
    counts = set().union(*(cell.parameters for cell in cells))
    return " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)})) if counts else "-"


def format_comparison(table: Table) -> str:
    """Return sentences that compare CoOp with 4 tokens to CoOp with 16: parameters, and accuracy over the shots."""
    standard, efficient = COOP_ROWS.values()
    saving = 100 * (1 - EFFICIENT_TOKENS / STANDARD_TOKENS)
    text = f"{efficient} learns {EFFICIENT_TOKENS} context tokens instead of {STANDARD_TOKENS}: "
    text += f"{saving:.0f}% fewer parameters. "
    both = [s for s in SHOTS[1:] if table[standard][s].accuracies and table[efficient][s].accuracies]
    if not both:
        return text + "No number of shots has both, so their accuracies cannot be compared yet."
    gaps = [table[efficient][s].mean - table[standard][s].mean for s in both]
    gap = statistics.mean(gaps)
    verdict = "on a par with" if abs(gap) <= PAR_POINTS else "lower than" if gap < 0 else "higher than"
    shots = ", ".join(f"{s}: {g:+.2f}" for s, g in zip(both, gaps, strict=True))
    text += f"Its accuracy is {verdict} {standard}'s: {gap:+.2f} points on average (shots {shots})"
    return f"{text}; within {PAR_POINTS:g} point counts as on a par."


def to_markdown(table: Table, title: str) -> str:
    """Return a Markdown page: the title, the table, the comparison of CoOp's two settings, and the notes."""
    frame = to_frame(table)
    align = ["left"] + ["right"] * frame.shape[1]
    lines = [f"# {title}", "", frame.to_markdown(colalign=align, disable_numparse=True), "", format_comparison(table)]
    cells = {f"{row}, {format_shots(shots)}": cell for row in table for shots, cell in table[row].items()}
    return "\n".join([*lines, *format_notes(cells)]) + "\n"


def plot_study(table: Table, title: str, file) -> None:
    """Write a plot of accuracy against shots, one curve per method, to a binary file as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for row, style in zip(ZERO_SHOT_ROWS, ("--", ":"), strict=True):
        if (zero := table.get(row, {}).get(0)) and zero.accuracies:
            axes.axhline(zero.mean, color="gray", linestyle=style, label=f"{row} ({zero.mean:.2f}%)")
    labels = {row: f"{row}, {n_ctx} tokens" for (n_ctx, _), row in COOP_ROWS.items()}
    for row, cells in table.items():
        finished = {shots: cell for shots, cell in cells.items() if cell.accuracies}
        if finished and row not in ZERO_SHOT_ROWS:
            means, spreads = [cell.mean for cell in finished.values()], [cell.spread for cell in finished.values()]
            axes.errorbar([*finished], means, spreads, marker="o", capsize=3, label=labels.get(row, row))
    axes.set_xscale("log", base=2)
    axes.set_xticks(SHOTS[1:], [str(s) for s in SHOTS[1:]])
    axes.set(xlabel="training images per class (shots)", ylabel="test accuracy (%)")
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(file, format="png", dpi=150)
    plt.close(figure)
