"""Cells of the results tables: runs of one setting, averaged over seeds, and the notes below a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dassl.utils import UserError
from studies.tables.runs import (
    ARITHMETIC,
    COMPARED,
    REPETITIONS,
    Run,
    find_differences,
    format_differences,
    format_repetition,
    group_repetitions,
    have_equal_results,
    read_trials,
)

MIN_TEST_IMAGES = 100  # with fewer, one image is more than a percentage point
SHORTCUT, OTHER = "*", "†"  # marks: a deviation from the original method; a cell that does not compare with the others


@dataclass
class Cell:
    """One cell of a table, from the runs of one setting with several seeds.

    Attributes:
        accuracies: accuracy of each run, in percent.
        runs: the averaged runs, one for each seed; none if the cell combines other cells.
        notes: sentences about runs that are not averaged.
        group: the group of the method.
        marks: SHORTCUT and OTHER, where they apply.
        shortcuts: how runs deviated from the original method, one sentence each.
    """

    accuracies: list[float] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    group: str = ""
    marks: str = ""
    shortcuts: set[str] = field(default_factory=set)

    @property
    def mean(self) -> float:
        """Mean accuracy in percent; StatisticsError for a cell without accuracies."""
        return statistics.mean(self.accuracies)

    @property
    def has_interval(self) -> bool:
        """Whether the accuracies are of several seeds, which do not share one draw of shots."""
        return len(self.accuracies) > 1 and not any(run.is_one_draw for run in self.runs)

    @property
    def spread(self) -> float:
        """Half the width, in percent, of the 95% confidence interval of the mean (Student's t); 0 below two draws."""
        return ci95_half_width(self.accuracies) if self.has_interval else 0

    @property
    def parameters(self) -> set[int]:
        """The numbers of trainable parameters in the runs' records."""
        counts = (run.record.get("trainable_parameters") for run in self.runs)
        return {count for count in counts if type(count) is int and 0 <= count < 2**63}

    @property
    def shots_had(self) -> str:
        """Text such as ``3 to 5 shots``, if a class had fewer training images than the number of shots; else ""."""
        trained = [run for run in self.runs if run.is_trained and not run.is_evaluation]
        had = [counts for run in trained if (counts := run.train_images_per_class) and counts[0] < run.shots]
        if not had:
            return ""
        fewest, most = min(low for low, _ in had), max(high for _, high in had)
        return format_shots(most) if fewest == most else f"{fewest} to {format_shots(most)}"

    def __str__(self) -> str:
        """Return the text of the cell, such as ``72.00 ± 6.57 (5 shots)*``; ``-`` without accuracies."""
        if not self.accuracies:
            return "-"
        spread = f" ± {self.spread:.2f}" if self.has_interval else ""
        shots = f" ({self.shots_had})" if self.shots_had else ""
        return f"{self.mean:.2f}{spread}{shots}{self.marks}"


def build_cell(runs: Sequence[Run]) -> Cell:
    """Return the cell that averages ``runs``, one for each seed.

    Runs whose settings differ are not averaged. Of several records of one seed, one counts if their results are equal,
    else none; likewise of several evaluations of one model. The notes of the cell name these runs.
    """
    cell = Cell(group=next((run.group for run in runs if run.group), ""))
    if differences := find_differences(runs):
        cell.notes.append(f"not averaged, as the settings differ: {format_differences(runs, differences)}")
        return cell
    cell.runs = list(runs)
    for name in REPETITIONS:
        groups, cell.runs = group_repetitions(cell.runs, name), []
        for group in groups:
            is_same = have_equal_results(group)
            if len(group) > 1:
                verdict = "equal, so it counts once" if is_same else f"different, so the {name} is left out"
                cell.notes.append(f"{len(group)} records of {format_repetition(group)}; {verdict}")
            cell.runs += group[:1] if is_same else []
    cell.accuracies = [run.accuracy for run in cell.runs]
    cell.shortcuts = {shortcut for run in cell.runs for shortcut in _find_shortcuts(run)}
    return cell


def select_tested(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """Return the runs that have an accuracy on test images, and a note for each other run."""
    tested, notes = [], []
    for run in runs:
        split = run.record.get("split", "test")
        if run.record.get("accuracy") is None:
            notes.append(f"{run.folder}: its record has no accuracy")
        elif split != "test":
            notes.append(f"{run.folder}: its accuracy is on the split {split}")
        else:
            tested.append(run)
    return tested, notes


def _find_shortcuts(run: Run) -> list[str]:
    """Return a sentence for each way in which a run deviated from the original: faster settings, omitted images."""
    notes, record = [], run.record
    if run.is_trained and (views := run.config.get("FEATURES.VIEWS")):
        epochs = "every epoch" if views == 1 else f"{views} epochs"
        notes.append(f"FEATURES.VIEWS {views}: training images repeat their random draws after {epochs}.")
    if run.is_trained and (sampled := record.get("sampled_classes")):
        notes.append(f"TRAINER.COOP.SAMPLED_CLASSES {sampled}: each training step uses a random sample of the classes.")
    if changed := run.changed_labels:
        notes.append(f"DATASET.FEWSHOT_FILE: {changed} training images have another label than in the data set.")
    if precision := run.config.get("FEATURES.PREC"):
        notes.append(f"FEATURES.PREC {precision}: image features in that precision.")
    if record.get("bad_images"):
        notes.append("DATASET.SKIP_BAD_IMAGES: images that could not be read were left out; result.json names them.")
    if mismatches := record.get("allowed_mismatch"):
        notes.append(
            f"--allow-mismatch: the model was trained under other settings, {'; '.join(map(str, mismatches))}."
        )
    if forced := record.get("forced"):
        notes.append(f"--force-resume: {'; '.join(map(str, forced))}.")
    return notes


def format_shots(shots: int) -> str:
    """Return ``1 shot`` or ``<shots> shots``."""
    return f"{shots} shot" if shots == 1 else f"{shots} shots"


def mark_cells(cells: dict[str, Cell], scope: str = "the table") -> list[str]:
    """Mark the cells that deviate from the original method or from most cells; return the notes on the latter.

    A cell compares with the others if COMPARED and its arithmetic are theirs. Without a majority, those of the largest
    group are not marked. The keys of ``cells`` name the cells in the notes; ``scope`` says what they have in common.
    """
    notes = []
    for key in (*COMPARED, ARITHMETIC):
        groups: dict[frozenset[str], list[str]] = {}
        for name, cell in cells.items():
            if values := frozenset(run.facts[key] for run in cell.runs if key in run.facts):
                groups.setdefault(values, []).append(name)
        usual = max(groups, key=lambda values: (len(values) == 1, len(groups[values])), default=frozenset())
        texts = {" and ".join(sorted(values)): names for values, names in groups.items()}
        notes += _format_groups(f"{OTHER} {key}", texts, " and ".join(sorted(usual)), f"most of {scope}")
        for name in (name for values, names in groups.items() if values != usual for name in names):
            cells[name].marks = OTHER
    for cell in cells.values():
        cell.marks = SHORTCUT * bool(cell.shortcuts) + OTHER * (OTHER in cell.marks)
    return notes


def format_notes(cells: dict[str, Cell], notes: Sequence[str], missing: dict[Path, str]) -> list[str]:
    """Return the Markdown lines below a table.

    They explain ± and the marks, and name the weights, shots that a class did not have, one draw of shots, few test
    images, the seeds, the runs that are not averaged, and those that are missing. A note on no cell is left out.

    Args:
        cells: the cells by their names in these lines.
        notes: the result of ``mark_cells``, and other sentences.
        missing: the result of ``list_missing``.
    """
    lines = []
    if any(cell.has_interval for cell in cells.values()):
        lines.append("± is the 95% confidence interval of the mean over seeds (Student's t).")
    if one_draw := [name for name, cell in cells.items() if any(run.is_one_draw for run in cell.runs)]:
        lines.append(
            f"All seeds share one draw of shots, not of validation images: no interval. In: {'; '.join(one_draw)}."
        )
    for shortcut in sorted(set().union(*(cell.shortcuts for cell in cells.values()))):
        marked = "; ".join(name for name, cell in cells.items() if shortcut in cell.shortcuts)
        lines.append(f"\\{SHORTCUT} {shortcut} In: {marked}.")
    lines += notes
    if fewer := [name for name, cell in cells.items() if cell.shots_had]:
        lines.append(
            f"In parentheses: a class had fewer training images than the number of shots. In: {'; '.join(fewer)}."
        )
    lines += [*_format_test_sizes(cells), *_format_seeds(cells)]
    if weights := sorted(
        {run.facts["weights"] for cell in cells.values() for run in cell.runs if "weights" in run.facts}
    ):
        lines.append(f"Weights: {'; '.join(weights)}.")
    lines += [f"{name}: {note}." for name, cell in cells.items() for note in cell.notes]
    lines = [text for line in lines for text in ("", line)]
    return (
        [*lines, "", "Missing:", "", *(f"- {path}: {reason}" for path, reason in missing.items())] if missing else lines
    )


def _format_test_sizes(cells: dict[str, Cell]) -> list[str]:
    """Return a sentence for each small number of test images: how many points one image is."""
    sizes: dict[int, list[str]] = {}
    for name, cell in cells.items():
        totals = (run.record.get("total") for run in cell.runs)
        for size in sorted({total for total in totals if isinstance(total, int)}):
            sizes.setdefault(size, []).append(name)
    small = {size: names for size, names in sizes.items() if 0 < size < MIN_TEST_IMAGES}
    return [
        f"{size} test images: one image is {100 / size:.2f} points."
        + (f" In: {'; '.join(names)}." if len(sizes) > 1 else "")
        for size, names in sorted(small.items())
    ]


def _format_seeds(cells: dict[str, Cell]) -> list[str]:
    """Return a sentence for each set of seeds other than that of most cells, among the cells of trained runs."""
    groups: dict[str, list[str]] = {}
    for name, cell in cells.items():
        if any(run.is_trained for run in cell.runs):
            groups.setdefault(", ".join(str(run.seed) for run in cell.runs), []).append(name)
    usual = max(groups, key=lambda seeds: len(groups[seeds]), default="")
    return _format_groups("Seeds", groups, usual, "most cells")


def _format_groups(subject: str, groups: dict[str, list[str]], usual: str, most: str) -> list[str]:
    """Return a sentence for each group of cells but that of the value ``usual``; ``groups`` has their names by value.

    It names the usual value with ``most`` ("most cells") if the majority of the cells has it, else with these cells.
    """
    is_majority = 2 * len(groups.get(usual, ())) > sum(map(len, groups.values()))
    lines = []
    for value, names in groups.items():
        text = f"{subject}: {value}; in {most}: {usual}. In: {'; '.join(names)}."
        if not is_majority:
            text = f"{subject}: {value}. In: {'; '.join(names)}. {subject.removeprefix(OTHER).strip().capitalize()}"
            text = f"{text}: {usual}. In: {'; '.join(groups.get(usual, ()))}."
        lines += [text] if value != usual else []
    return lines


def list_missing(folder: Path, runs: Iterable[Run], unfinished: Iterable[Path]) -> dict[Path, str]:
    """Return the reason for each run that has not ended, and each that a sweep was asked for and that has no result.

    The keys are the absolute paths of their folders.
    """
    finished = {run.folder.absolute() for run in runs}
    absent = read_trials(folder) - finished
    reasons = {path.absolute(): "no log.txt" if path.is_dir() else "not started" for path in absent}
    reasons |= {path.absolute(): "the run has not ended (no result.json)" for path in unfinished}
    return dict(sorted(reasons.items()))


def check_any_result(cells: Iterable[Cell], folder: Path, notes: Sequence[str], missing: dict[Path, str]) -> None:
    """Raise ``UserError``, with one of the notes on runs without a result, if no cell has an accuracy."""
    cells = list(cells)
    if not any(cell.accuracies for cell in cells):
        reasons = [*(note for cell in cells for note in cell.notes), *notes]
        reasons += [f"{path}: {reason}" for path, reason in missing.items()]
        raise UserError("; ".join([f"no run in {folder} has a result for the table", *reasons[:1]]))


def ci95_half_width(values: Sequence[float]) -> float:
    """Return half the width of the 95% confidence interval of the mean (Student's t); NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan
    from scipy.special import stdtrit  # quantiles of Student's t; scipy.stats takes a second to import

    return float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))
