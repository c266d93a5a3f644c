"""A contact sheet: one PNG that shows images with their predictions."""

from __future__ import annotations

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


def write_contact_sheet(path: str, sheet: Sequence[tuple[str, Image.Image, list[dict]]]) -> None:
    """Write a PNG of pictures, each below its file name and above its predictions.

    ``sheet`` has (image path, picture, predictions) of each image; a prediction is {"class": …, "probability": …}.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    texts = [text for name, _, entries in sheet for text in (Path(name).name, *(entry["class"] for entry in entries))]
    columns = min(COLUMNS, len(sheet))
    rows = -(-len(sheet) // columns)
    text_inches = (max(len(predictions) for _, _, predictions in sheet) + 1.5) * LINE_INCHES
    height = rows * (COLUMN_INCHES + text_inches)
    bottom, top = text_inches / height, 1 - LINE_INCHES / height
    row_spacing = (text_inches + LINE_INCHES) / (COLUMN_INCHES - LINE_INCHES)
    with plot_fonts(texts):
        figure, cells = plt.subplots(rows, columns, squeeze=False, figsize=(columns * COLUMN_INCHES, height))
        figure.subplots_adjust(0.01, bottom, 0.99, top, 0.06, row_spacing)
        for cell in cells.flat:
            cell.axis("off")
            cell.set_anchor("SW")  # next to its text, which is below and starts at the left
        for cell, (name, picture, predictions) in zip(cells.flat, sheet, strict=False):
            cell.imshow(picture)
            cell.set_title(_shorten(Path(name).name), loc="left", fontsize=7, pad=3)
            text = "\n".join(f"{entry['probability']:.1%}  {_shorten(entry['class'])}" for entry in predictions)
            cell.annotate(text, (0, -0.03), xycoords="axes fraction", fontsize=7, va="top", linespacing=1.4)
        try:
            with atomic_write(path, "wb") as file:
                figure.savefig(file, format="png", dpi=110)
        finally:
            plt.close(figure)


def _shorten(text: str) -> str:
    """Return ``text``, cut to ``MAX_LETTERS`` with a final … if longer, with dollar signs escaped for Matplotlib."""
    text = text.replace("$", r"\$")  # Matplotlib reads $…$ as a formula
    return text if len(text) <= MAX_LETTERS else f"{text[: MAX_LETTERS - 1]}…"
