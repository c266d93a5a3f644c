"""Accuracies that papers' repositories state (docs/published.csv), beside those of a study's table.

A figure has a row where the method, the backbone with OpenAI's weights, the data set with all its classes and test
images, and the shots are those of a cell. Methods with PROTOCOL none, and cells that do not compare, have none.
"""

from __future__ import annotations

import csv
from pathlib import Path

from dassl.utils import UserError

from .cells import OTHER, Cell
from .study import COOP_ROWS, STANDARD_TOKENS, Study

NOTE = "On ImageNet, the code of APE, GDA and Tip-Adapter chooses hyper-parameters on the test images."
PROTOCOLS = ("few-shot", "zero-shot")  # of the figures that a study's table can have; others are from base to new, …
METHODS = {"CLIP": "Zero-shot CLIP", "Linear Probing": "Linear probe", "CoOp": COOP_ROWS[STANDARD_TOKENS, False]}
# Classes and test images of the data sets in few-shot papers (CoOp, Zhou et al., IJCV 2022, appendix A).
SIZES = {"ImageNet": (1000, 50_000), "Caltech101": (100, 2_465), "OxfordPets": (37, 3_669), "UCF101": (101, 3_783)}
SIZES |= {"StanfordCars": (196, 8_041), "OxfordFlowers": (102, 2_463), "SUN397": (397, 19_850), "EuroSAT": (10, 8_100)}
SIZES |= {"FGVCAircraft": (100, 3_333), "Food101": (101, 30_300), "DescribableTextures": (47, 1_692)}

Figures = dict[tuple[str, ...], list[dict[str, str]]]  # rows of the file by method, backbone, data set and shots


def read_figures(path: Path) -> Figures:
    """Return the figures in a CSV file with the columns of docs/published.csv; ``UserError`` if it is not one."""
    figures: Figures = {}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, strict=True):
                method, *place, protocol = (row[key] for key in ("method", "backbone", "dataset", "shots", "protocol"))
                if protocol in PROTOCOLS and float(row["accuracy"]) >= 0:
                    figures.setdefault((METHODS.get(method, method), *place), []).append(row)
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is no file of published figures such as docs/published.csv: {error!r}") from error
    return figures


def compare_figures(study: Study, figures: Figures):
    """Return a pandas.DataFrame of text with a row for each figure that a cell of ``study`` compares with."""
    import pandas as pd

    rows = []
    for method, cells in study.table.items() if study.protocol != "none" else ():
        for shots, cell in sorted(cells.items()):
            place = (method, *_describe_cell(cell), str(shots))
            for row in figures.get(place, ()):
                stated = float(row["accuracy"])
                measured = f"{stated:.2f}", str(cell), f"{cell.mean - stated:+.2f}"
                rows.append((*place, *measured, *(row[key] for key in ("std", "seeds", "source"))))
    heads = ["method", "backbone", "data set", "shots", "published", "ours", "difference", "std", "seeds", "source"]
    return pd.DataFrame(rows, columns=heads)


def _describe_cell(cell: Cell) -> tuple[str, str]:
    """Return the backbone and the data set of a cell's runs; ("", "") if they compare with no published figure."""
    places = {("", "")} if OTHER in cell.marks or not cell.accuracies else set()
    for run in cell.runs:
        weights, dataset = run.record.get("weights") or {}, str(run.record.get("dataset"))
        sizes = len(run.record.get("classnames", [])), run.record.get("total")
        is_same = SIZES.get(dataset) == sizes and not weights.get("file") and not run.changed_labels
        places.add((str(weights.get("backbone")), dataset) if is_same else ("", ""))
    return places.pop() if len(places) == 1 else ("", "")


def to_markdown(frame) -> str:
    """Return the section of a Markdown page with the result of ``compare_figures``."""
    table = frame.to_markdown(index=False, disable_numparse=True)
    return f"\n## Published beside measured\n\n{table}\n\n{NOTE}\n"
