"""A contact sheet: one PNG that shows images with their predictions."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dassl.utils import atomic_write
from dassl.utils.fonts import plot_fonts

if TYPE_CHECKING:
    from PIL import Image

MAX_IMAGES = 60  # images on a sheet: ten rows; nobody looks through more
COLUMNS = 6  # images in a row: a sheet of 13 inches, as wide as a screen
THUMBNAIL_PIXELS = 240  # pixels of an image's longer edge: a column at the sheet's 110 dots an inch
COLUMN_INCHES, LINE_INCHES = 2.2, 0.16  # width of a column; height of a line of text at 7 points, with its spacing
MAX_LETTERS = 30  # letters in a line: as many as a column holds at 7 points
MARKS = {True: ("✓", "#1b7837"), False: ("✗", "#d6604d")}  # the green is darker than the red, also in gray


def write_contact_sheet(
    path: str, sheet: Sequence[tuple[str, Image.Image, list[dict]]], classnames: Sequence[str] = (), title: str = ""
) -> None:
    """Write a PNG of images, each below its folder and file name and above its predictions.

    ``sheet`` has (image path, image, predictions) of each; a prediction is {"class": …, "probability": …}, the most
    probable comes first. An image is marked right or wrong if its folder has the name of one of ``classnames``, where
    capitals and _ do not count.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    labels = {_to_words(name): name for name in classnames}
    paths = {name: Path(name).absolute().parts[-2:] for name, _, _ in sheet}
    labels = {name: labels[_to_words(folder)] for name, (folder, _) in paths.items() if _to_words(folder) in labels}
    is_right = {name: entries[0]["class"] == labels[name] for name, _, entries in sheet if name in labels}
    title += f" · {sum(is_right.values())} of {len(is_right)} right" * bool(is_right)
    texts = [title, "✓✗", *map("/".join, paths.values()), *(e["class"] for _, _, entries in sheet for e in entries)]
    columns = min(COLUMNS, len(sheet))
    rows = -(-len(sheet) // columns)
    text_inches = (max(len(predictions) for _, _, predictions in sheet) + bool(labels) + 1.5) * LINE_INCHES
    height = rows * (COLUMN_INCHES + text_inches) + 2 * LINE_INCHES
    bottom, top = text_inches / height, 1 - 3 * LINE_INCHES / height
    row_spacing = (text_inches + LINE_INCHES) / (COLUMN_INCHES - LINE_INCHES)
    style = {"xycoords": "axes fraction", "fontsize": 7, "va": "top", "linespacing": 1.4, "parse_math": False}
    with plot_fonts([*texts, *labels.values()]):
        figure, cells = plt.subplots(rows, columns, squeeze=False, figsize=(columns * COLUMN_INCHES, height))
        figure.subplots_adjust(0.01, bottom, 0.99, top, 0.06, row_spacing)
        figure.text(0.01, 1 - LINE_INCHES / height, title, fontsize=9, va="center", parse_math=False)
        for cell in cells.flat:
            cell.axis("off")
            cell.set_anchor("SW")  # next to its text, which is below and starts at the left
        for cell, (name, picture, predictions) in zip(cells.flat, sheet, strict=False):
            cell.imshow(picture)
            cell.set_title(_shorten("/".join(paths[name])), loc="left", fontsize=7, pad=3, parse_math=False)
            lines = [f"{entry['probability']:.1%}  {_shorten(entry['class'])}" for entry in predictions]
            cell.annotate("\n".join([""] * bool(labels) + lines), (0, -0.03), **style)
            if name in labels:
                sign, color = MARKS[is_right[name]]
                cell.annotate(f"{sign} label: {_shorten(labels[name])}", (0, -0.03), color=color, **style)
                cell.add_patch(plt.Rectangle((0, 0), 1, 1, transform=cell.transAxes, fill=False, ec=color, lw=4))
        try:
            with atomic_write(path, "wb") as file:
                figure.savefig(file, format="png", dpi=110)
        finally:
            plt.close(figure)


def _to_words(name: str) -> str:
    """Return the name of a class or folder in small letters, with spaces for _."""
    return name.replace("_", " ").casefold()


def _shorten(text: str) -> str:
    """Return ``text``, with … in place of its middle if it is longer than MAX_LETTERS, of Chinese ones half as many."""
    half = MAX_LETTERS // (4 if any(unicodedata.east_asian_width(letter) in "WF" for letter in text) else 2)
    return text if len(text) <= 2 * half else f"{text[: half - 1]}…{text[-half:]}"
