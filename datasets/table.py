"""Tables (CSV) that list images: reading their rows, and DATASET.CSV, which gives each image a class and a split."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dassl.utils import UserError, is_utf8

from .split_file import SPLIT_FILE_KEYS


class ImageRow(NamedTuple):
    """A row of DATASET.CSV; rows sort as the images of class folders do.

    Attributes:
        folder: the class, as the name of a class folder.
        name: the image's path below DATASET.FOLDER, with forward slashes.
        split: train, test or val; "" if the table has no such column.
    """

    folder: str
    name: str
    split: str


def read_image_table(file: Path, root: Path) -> list[ImageRow]:
    """Return the sorted rows of a table with the columns ``image``, ``class`` and, optionally, ``split``.

    ``image`` is a path below ``root``. Other columns are ignored.

    Raises:
        UserError: the file is missing, or a row is wrong or of a class without training images; the message names its
            line. Or no image is for training, or none for testing.
    """
    if not os.path.isfile(file):
        raise UserError(f"there is no file {file}; DATASET.CSV names it, below FOLDER")
    rows: dict[str, tuple[int, ImageRow]] = {}
    for number, row in read_table(file):
        where = f"{file}, line {number}"
        values = {column: (row.get(column) or "").strip() for column in ("image", "class", "split")}
        for column in ("image", "class", *(["split"] if "split" in row else [])):
            if not values[column]:
                problem = "empty" if column in row else "missing"
                raise UserError(f"{where}: the column {column} is {problem}; the columns are {', '.join(row)}")
        if values["split"] not in ("", *SPLIT_FILE_KEYS):
            raise UserError(f'{where}: the split "{values["split"]}" is none of {", ".join(SPLIT_FILE_KEYS)}')
        name = relative_path(values["image"], root, where)
        if name in rows:
            raise UserError(f"{where}: {name} is in line {rows[name][0]}, too")
        if not os.path.isfile(root / name):
            raise UserError(f"{where}: there is no image {root / name}")
        rows[name] = number, ImageRow(values["class"], name, values["split"])
    splits = {row.split for _, row in rows.values()}
    for accepted, purpose in (({"train", ""}, "training"), ({"test", "val", ""}, "testing")):
        if not splits & accepted:
            raise UserError(f"{file}: no image is for {purpose}; it has {len(rows):,} images")
    trained = {row.folder for _, row in rows.values() if row.split in ("train", "")}
    for number, row in rows.values():
        if row.folder not in trained:
            raise UserError(f'{file}, line {number}: its class "{row.folder}" has no training image')
    return sorted(row for _, row in rows.values())


def read_table(file: Path) -> Iterator[tuple[int, dict]]:
    """Yield (line number, {column: text}) of a table with a header and tabs (if the header has one) or commas."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            delimiter = "\t" if "\t" in lines.readline() else ","
            lines.seek(0)
            reader = csv.DictReader(lines, delimiter=delimiter, strict=True)  # else an open quote swallows rows
            if duplicates := [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]:
                raise UserError(f'{file}: there are two columns "{duplicates[0]}"')
            for row in reader:
                if None in row:
                    hint = "a text with commas goes in quotation marks"
                    raise UserError(f"{file}, row {reader.line_num}: it has more columns than the header; {hint}")
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as a table in UTF-8: {error}") from error


def relative_path(path: object, root: Path, where: str) -> str:
    """Return ``path`` relative to ``root``, with /; if it leads outside, a :class:`UserError` begins with ``where``."""
    if not isinstance(path, str) or not is_utf8(path):
        raise UserError(f"{where}: the path of its image is no text in UTF-8")
    absolute = os.path.normpath(root / path.replace("\\", "/"))
    name = os.path.relpath(absolute, root)
    if name.split(os.sep)[0] in (os.pardir, os.curdir):
        raise UserError(f"{where}: the image {path} is not in the folder {root}")
    return name.replace(os.sep, "/")
