"""Cells of the results tables: what the runs of a folder gave, and what is to be said about them below a table."""

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
    """The accuracies of one cell, one a seed, why runs are missing, and what else their records tell."""

    accuracies: list[float] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    weights: set[str] = field(default_factory=set)
    parameters: set[int] = field(default_factory=set)  # how many were trained
    shortcuts: set[str] = field(default_factory=set)

    @property
    def mean(self) -> float:
        return statistics.mean(self.accuracies)

    @property
    def spread(self) -> float:
        """Half of the 95% interval; 0 for a single run."""
        return ci95_half_width(self.accuracies) if len(self.accuracies) > 1 else 0

    def __str__(self) -> str:
        if not self.accuracies:
            return "-"
        spread = f" ± {self.spread:.2f}" if len(self.accuracies) > 1 else ""
        return f"{self.mean:.2f}{spread}{'*' if self.shortcuts else ''}"


def list_runs(folder: Path) -> list[Path]:
    """The runs in ``folder``: its seed folders, or the folder itself."""
    return sorted(folder.glob("seed*")) or [folder]


def read_cell(runs: Iterable[Path], expected: dict, trained: bool) -> Cell:
    """The cell of ``runs``, each the folder of one run: ``trained``, or else evaluated only.

    A run whose record tells of other settings than ``expected`` (config key: value) is not taken.
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
            if reason := _find_config_mismatch(record, {"TEST.SPLIT": "test", **expected}):
                cell.missing.append(f"{run}: {reason}")
                continue
            cell.weights.add(_describe_weights(record))
            if type(count := record.get("trainable_parameters")) is int and 0 <= count < 2**63:
                cell.parameters.add(count)
            cell.shortcuts.update(_find_shortcuts(record, trained))
        cell.accuracies.append(accuracy)
    return cell


def _find_config_mismatch(record: dict, expected: dict) -> str:
    """Why a run does not belong in the cell that its folder names; empty if it does."""
    config = dict(flatten(record.get("config") or {}))
    if config.get("TRAINER.COOP.CTX_INIT"):  # its words set the number of tokens
        expected = {key: value for key, value in expected.items() if key != "TRAINER.COOP.N_CTX"}
    wrong = [f"{key} {config[key]}" for key, value in expected.items() if config.get(key, value) != value]
    return f"its record says {', '.join(wrong)}" if wrong else ""


def _describe_weights(record: dict) -> str:
    weights = record.get("weights")
    if not isinstance(weights, dict):
        return "not recorded"
    return f"{weights.get('backbone')}, SHA-256 {str(weights.get('sha256'))[:16]}…"


def _find_shortcuts(record: dict, trained: bool) -> list[str]:
    """What a run did otherwise than the original: settings that trade exactness for speed, and images that were left
    out; old records have none."""
    config = dict(flatten(record.get("config") or {}))
    found = []
    if trained and (views := config.get("FEATURES.VIEWS")):
        epochs = "every epoch" if views == 1 else f"{views} epochs"
        found.append(f"FEATURES.VIEWS {views}: training images repeat their random draws after {epochs}.")
    if trained and (sampled := record.get("sampled_classes")):
        found.append(f"TRAINER.COOP.SAMPLED_CLASSES {sampled}: training steps over some of the classes, drawn anew.")
    if precision := config.get("FEATURES.PREC"):
        found.append(f"FEATURES.PREC {precision}: image features in that precision.")
    if record.get("bad_images"):
        found.append("DATASET.SKIP_BAD_IMAGES: images that could not be read were left out; result.json names them.")
    return found


def format_shots(shots: int) -> str:
    return f"{shots} shot" if shots == 1 else f"{shots} shots"


def format_notes(cells: dict[str, Cell]) -> list[str]:
    """The lines below a table whose cells are called as the keys say: shortcuts, weights, what is missing and why."""
    lines = []
    if any(len(cell.accuracies) > 1 for cell in cells.values()):
        lines += ["", "± is the 95% confidence interval of the mean over seeds (Student's t)."]
    for shortcut in sorted(set().union(*(cell.shortcuts for cell in cells.values()))):
        places = "; ".join(place for place, cell in cells.items() if shortcut in cell.shortcuts)
        lines += ["", f"\\* {shortcut} In: {places}."]
    weights = sorted(set().union(*(cell.weights for cell in cells.values())))
    if weights:
        lines += ["", f"Weights: {'; '.join(weights)}."]
    if len(weights) > 1:
        lines += ["", "**The cells come from different weights and cannot be compared.**"]
    missing = [f"- {place}: {why}" for place, cell in cells.items() for why in cell.missing]
    if missing:
        lines += ["", "Missing:", "", *missing]
    return lines


def ci95_half_width(values: Sequence[float]) -> float:
    """Half the width of the 95% confidence interval of the mean of a few runs (Student's t); NaN for fewer than two."""
    if len(values) < 2:
        return math.nan
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
