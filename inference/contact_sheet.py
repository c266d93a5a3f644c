"""A sheet of pictures, each with what was said of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dassl.utils import atomic_write

if TYPE_CHECKING:
    from PIL import Image

MAX_IMAGES = 60  # on a sheet; more could not be looked at
COLUMNS = 6
THUMBNAIL_PIXELS = 240  # pixels of a picture on it
COLUMN_INCHES, LINE_INCHES = 2.2, 0.16  # inches: the width of a column, and a line of text
MAX_LETTERS = 30  # that go into a line
# Class names may be Chinese, Japanese or Korean: the first of these that is installed has their letters.
CJK_FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "Microsoft YaHei", "PingFang SC", "SimHei", "WenQuanYi Zen Hei")


def write_contact_sheet(path: str, sheet: Sequence[tuple[str, Image.Image, list[dict]]]) -> None:
    """Write a PNG of pictures, each below its file's name and above its predictions (``class``, ``probability``)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import font_manager
    from matplotlib import pyplot as plt

    installed = {font.name for font in font_manager.fontManager.ttflist}
    columns = min(COLUMNS, len(sheet))
    rows = -(-len(sheet) // columns)
    text = (max(len(predictions) for _, _, predictions in sheet) + 1.5) * LINE_INCHES
    height = rows * (COLUMN_INCHES + text)
    with plt.rc_context({"font.family": ["DejaVu Sans", *[name for name in CJK_FONTS if name in installed][:1]]}):
        figure, cells = plt.subplots(rows, columns, squeeze=False, figsize=(columns * COLUMN_INCHES, height))
        figure.subplots_adjust(
            0.01,
            text / height,
            0.99,
            1 - LINE_INCHES / height,
            0.06,
            (text + LINE_INCHES) / (COLUMN_INCHES - LINE_INCHES),
        )
        for cell in cells.flat:
            cell.axis("off")
            cell.set_anchor("SW")  # its text is below, at the left
        for cell, (name, picture, predictions) in zip(cells.flat, sheet, strict=False):
            cell.imshow(picture)
            cell.set_title(_shorten(Path(name).name), loc="left", fontsize=7, pad=3)
            words = "\n".join(f"{entry['probability']:.1%}  {_shorten(entry['class'])}" for entry in predictions)
            cell.annotate(words, (0, -0.03), xycoords="axes fraction", fontsize=7, va="top", linespacing=1.4)
        try:
            with atomic_write(path, "wb") as file:
                figure.savefig(file, format="png", dpi=110)
        finally:
            plt.close(figure)


def _shorten(text: str) -> str:
    text = text.replace("$", r"\$")  # not a formula
    return text if len(text) <= MAX_LETTERS else f"{text[: MAX_LETTERS - 1]}…"
