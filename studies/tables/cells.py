"""Cells of the results tables: reading accuracies from run folders, and the notes below a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dassl.config.merge import flatten
from dassl.engine.record import RECORD_FILE, read_record
from dassl.log_format import read_result


@dataclass
class Cell:
    """One cell of a table, from the runs of one setting with several seeds.

    Attributes:
        accuracies: accuracy of each finished run, in percent.
        missing: for each run without a usable result, its folder and the reason.
        weights: descriptions of the CLIP weights that the runs used.
        parameters: numbers of trainable parameters in the runs' records.
        shortcuts: how runs deviated from the original method, one sentence each.
    """

    accuracies: list[float] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    weights: set[str] = field(default_factory=set)
    parameters: set[int] = field(default_factory=set)
    shortcuts: set[str] = field(default_factory=set)

    @property
    def mean(self) -> float:
        """Mean accuracy in percent; StatisticsError for a cell without accuracies."""
        return statistics.mean(self.accuracies)

    @property
    def spread(self) -> float:
        """Half the width, in percent, of the 95% confidence interval of the mean (Student's t); 0 below two runs."""
        return ci95_half_width(self.accuracies) if len(self.accuracies) > 1 else 0

    def __str__(self) -> str:
        """Return the text of the cell, such as ``72.00 ± 6.57*``; ``-`` without accuracies, ``*`` with shortcuts."""
        if not self.accuracies:
            return "-"
        spread = f" ± {self.spread:.2f}" if len(self.accuracies) > 1 else ""
        return f"{self.mean:.2f}{spread}{'*' if self.shortcuts else ''}"


def list_runs(folder: Path) -> list[Path]:
    """Return the run folders ``seed*`` in ``folder``; without any, ``folder`` itself."""
    return sorted(folder.glob("seed*")) or [folder]


def read_cell(runs: Iterable[Path], expected: dict, trained: bool) -> Cell:
    """Read the logs and the records of runs into a cell.

    Args:
        runs: folder of each run.
        expected: config values by dotted key; a run whose record (result.json) has another value counts as missing.
        trained: whether the runs trained a model; False: they only evaluated one.
    """
    cell = Cell()
    for run in runs:
        log = run / "log.txt"
        if not log.is_file():
            cell.missing.append(f"{run}: no log.txt")
            continue
        accuracy = read_result(log, test_log=not trained)
        if accuracy is None:
            cell.missing.append(f"{run}: {'the run has not ended' if trained else 'no result in the log'}")
            continue
        if (run / RECORD_FILE).is_file():
            record = read_record(run)
            if mismatch := _find_config_mismatch(record, {"TEST.SPLIT": "test", **expected}):
                cell.missing.append(f"{run}: {mismatch}")
                continue
            cell.weights.add(_describe_weights(record))
            if type(count := record.get("trainable_parameters")) is int and 0 <= count < 2**63:
                cell.parameters.add(count)
            cell.shortcuts.update(_find_shortcuts(record, trained))
        cell.accuracies.append(accuracy)
    return cell


def _find_config_mismatch(record: dict, expected: dict) -> str:
    """Return a message on the record's config values other than ``expected`` (by dotted key); empty without any."""
    config = dict(flatten(record.get("config") or {}))
    if config.get("TRAINER.COOP.CTX_INIT"):  # its words set the number of tokens
        expected = {key: value for key, value in expected.items() if key != "TRAINER.COOP.N_CTX"}
    wrong = [f"{key} {config[key]}" for key, value in expected.items() if config.get(key, value) != value]
    return f"its record has {', '.join(wrong)}" if wrong else ""


def _describe_weights(record: dict) -> str:
    """Return the backbone and the checksum of the CLIP weights in a record; "not recorded" without them."""
    weights = record.get("weights")
    if not isinstance(weights, dict):
        return "not recorded"
    return f"{weights.get('backbone')}, SHA-256 {str(weights.get('sha256'))[:16]}…"


def _find_shortcuts(record: dict, trained: bool) -> list[str]:
    """Return a sentence for each way in which a run deviated from the original: faster settings, omitted images.

    Shortcuts in training count only if ``trained`` is True: the run trained a model.
    """
    config = dict(flatten(record.get("config") or {}))
    notes = []
    if trained and (views := config.get("FEATURES.VIEWS")):
        epochs = "every epoch" if views == 1 else f"{views} epochs"
        notes.append(f"FEATURES.VIEWS {views}: training images repeat their random draws after {epochs}.")
    if trained and (sampled := record.get("sampled_classes")):
        notes.append(f"TRAINER.COOP.SAMPLED_CLASSES {sampled}: each training step uses a random sample of the classes.")
    if precision := config.get("FEATURES.PREC"):
        notes.append(f"FEATURES.PREC {precision}: image features in that precision.")
    if record.get("bad_images"):
        notes.append("DATASET.SKIP_BAD_IMAGES: images that could not be read were left out; result.json names them.")
    return notes


def format_shots(shots: int) -> str:
    """Return ``1 shot`` or ``<shots> shots``."""
    return f"{shots} shot" if shots == 1 else f"{shots} shots"


def format_notes(cells: dict[str, Cell]) -> list[str]:
    """Return the Markdown lines below a table: what ± means, shortcuts, CLIP weights, missing runs with reasons.

    Shortcuts are deviations from the original method, as in :class:`Cell`. The keys of ``cells`` name the cells in
    these lines. A note that concerns no cell is left out.
    """
    lines = []
    if any(len(cell.accuracies) > 1 for cell in cells.values()):
        lines += ["", "± is the 95% confidence interval of the mean over seeds (Student's t)."]
    for shortcut in sorted(set().union(*(cell.shortcuts for cell in cells.values()))):
        marked = "; ".join(name for name, cell in cells.items() if shortcut in cell.shortcuts)
        lines += ["", f"\\* {shortcut} In: {marked}."]
    weights = sorted(set().union(*(cell.weights for cell in cells.values())))
    if weights:
        lines += ["", f"Weights: {'; '.join(weights)}."]
    if len(weights) > 1:
        lines += ["", "**The cells come from different weights and cannot be compared.**"]
    if missing := [f"- {name}: {reason}" for name, cell in cells.items() for reason in cell.missing]:
        lines += ["", "Missing:", "", *missing]
    return lines


def ci95_half_width(values: Sequence[float]) -> float:
    """Return half the width of the 95% confidence interval of the mean (Student's t); NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
