"""Tables (CSV) that list images: reading their rows, and DATASET.CSV, which gives each image a class and a split."""

from __future__ import annotations

import csv
import io
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dassl.config.merge import abbreviate
from dassl.utils import UserError, is_utf8, read_text

if TYPE_CHECKING:
    import pandas as pd

# Names of the column of image files in published tables, without "_" (``simplify_name``); the first present counts.
IMAGE_COLUMNS = (
    *("image", "filepath", "filename", "imagepath", "imagename", "imagefile", "imagefilename"),
    *("img", "imgpath", "imgname", "path", "file"),
)
CLASS_COLUMNS = ("class", "label", "classname", "category")  # the same for the column of classes
# Names of splits in published tables -> ours; restval is Karpathy's.
SPLITS = {"train": "train", "restval": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
          "test": "test", "training": "train", "testing": "test"}  # fmt: skip
SEPARATORS = ",\t;|"  # of columns; the one with which the header has the columns needed, the first if several do
UNQUOTED_SEPARATORS = "\t|"  # in such files, quotation marks are often part of a text
LINE_END = re.compile(r"\r\n?|\n")
PREAMBLE = re.compile(r"(?:(?:sep=.)? *(?:\r\n?|\n))*")  # before the header: blank lines, and Excel's "sep=;"
UNSEPARATED_NUMBER = re.compile(r" *(\d+) +(\S.*)", re.DOTALL)  # " 4   A dog .", without the separator after "4"
MAX_PATH = 4096  # characters, Linux's limit of a path; an image column of longer texts holds the data of images


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


def read_image_table(file: Path, root: Path, image_column: str = "") -> list[ImageRow]:
    """Return the sorted rows of a table with the columns ``image``, ``class`` and, optionally, ``split``.

    ``image`` is a path below ``root``. Its column is named as in IMAGE_COLUMNS, or ``image_column``, that of ``class``
    as in CLASS_COLUMNS. Other columns are ignored.

    Raises:
        UserError: the file is missing, or a row is wrong or of a class without training images; the message names its
            line. Or no image is for training, or none for testing.
    """
    if not os.path.isfile(file):
        raise UserError(f"there is no file {file}; DATASET.CSV names it, below FOLDER")
    columns = {"image": [image_column] if image_column else IMAGE_COLUMNS, "class": CLASS_COLUMNS, "split": ["split"]}
    rows: dict[str, tuple[int, ImageRow]] = {}
    for number, row in read_table(file, columns):
        where = f"{file}, line {number}"
        values = {column: row[column].strip() for column in row}
        for column, value in values.items():
            if not value:
                raise UserError(f"{where}: the column {column} is empty")
        name = relative_path(values["image"], root, where)
        if name in rows:
            raise UserError(f"{where}: {abbreviate(name)} is in line {rows[name][0]}, too")
        check_image_exists(root, name, where)
        rows[name] = number, ImageRow(values["class"], name, parse_split(values.get("split"), where))
    splits = {row.split for _, row in rows.values()}
    for accepted, purpose in (({"train", ""}, "training"), ({"test", "val", ""}, "testing")):
        if not splits & accepted:
            raise UserError(f"{file}: no image is for {purpose}; it has {len(rows):,} images")
    trained = {row.folder for _, row in rows.values() if row.split in ("train", "")}
    for number, row in rows.values():
        if row.folder not in trained:
            raise UserError(f'{file}, line {number}: its class "{abbreviate(row.folder)}" has no training image')
    return sorted(row for _, row in rows.values())


# ---- any table ----


def simplify_name(name: str) -> str:
    """Return the name of a column in lower case, without spaces and punctuation: "File Name" is ``file_name``."""
    return re.sub(r"[\W_]+", "", name.casefold())


def read_table(file: Path, columns: Mapping[str, Sequence[str]]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, {key: text}) of the rows of a table with a header.

    Columns are separated by commas, tabs, ``;`` or ``|``, as the header shows. A text may be in quotation marks; where
    that fails in a file with tabs or ``|``, they are part of the texts, and a note says so. All values stay text. A
    note names rows that ``_insert_separator`` repairs, and columns that hold splits under another name.

    Args:
        columns: names of the column of each key, in order of preference; ``split`` may be missing.

    Raises:
        UserError: the file is not in UTF-8, a column is missing, or a row does not fit the header; the message names
            the line.
    """
    text = read_text(file)
    preamble = PREAMBLE.match(text)[0]  # type: ignore[index]  # it matches "", too
    text, line = text[len(preamble) :], 1 + len(LINE_END.findall(preamble))
    header_line = io.StringIO(text, newline="").readline().rstrip("\r\n")
    headers = [(separator, split_header(header_line, separator)) for separator in SEPARATORS]
    simple = {simplify_name(name) for names in columns.values() for name in names}
    separator, header = max(headers, key=lambda item: len(simple.intersection(map(simplify_name, item[1]))))
    indices = _find_columns(file, line, header, columns)
    table = _parse_table(file, text, separator, header, line)
    if "split" not in indices:
        _note_split_columns(file, table.drop(columns=[*indices.values()]), header)
    for values in table.itertuples(index=False, name=None):
        line += 1
        where = f"{file}, line {line}"
        cells = [value for value in values if isinstance(value, str)]  # those that are missing are NaN
        num_breaks = sum(len(LINE_END.findall(cell)) for cell in cells)
        if len(cells) == len(header) - 1 and separator == "|" and 1 not in indices.values():
            cells = _insert_separator(where, cells)
        if 0 < len(cells) < len(header):
            problem = f"columns in the row: {len(cells)}, in the header: {len(header)}"
            raise UserError(f"{where}: {problem}; a separator is missing, or there is a line break in a text")
        if cells:  # not an empty line
            row = {key: cells[index] for key, index in indices.items()}
            _check_quotes(where, cells, indices["image"], separator)
            yield line, row if separator != "|" else {key: value.strip() for key, value in row.items()}
        line += num_breaks


def split_header(line: str, separator: str) -> list[str]:
    """Return the names of the columns in the first line of a table."""
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:  # a line that is too long for a header
        return [line]


def _find_columns(file: Path, line: int, header: list[str], columns: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return the index in ``header`` of each key of ``columns`` (``read_table``); a note names other candidates.

    ``file`` and ``line``, where the header is, are for messages.
    """
    simple, indices = [simplify_name(name) for name in header], {}
    for key, names in columns.items():
        candidates = [name for name in map(simplify_name, names) if name in simple]
        is_setting = key in ("image", "caption")
        hint = f"DATASET.{key.upper()}_COLUMN names it" if is_setting else f"the first of {', '.join(names)} counts"
        if candidates and simple.count(candidates[0]) > 1:
            raise UserError(f'{file}: there are two columns "{header[simple.index(candidates[0])]}"')
        if candidates:
            indices[key] = simple.index(candidates[0])
            quoted = [f'"{header[simple.index(name)].strip()}"' for name in candidates]
            if len(quoted) > 1:
                source = f"each {key} comes from the column {quoted[0]}, not {', '.join(quoted[1:])}"
                print(f"Note: {file}: {source}; {hint}")
        elif key != "split":
            problem = f"the column {key} is missing; the columns are {abbreviate(', '.join(map(str.strip, header)))}"
            if {simplify_name(name) for each in columns.values() for name in each}.isdisjoint(simple):
                example = ",".join(each for each in columns if each != "split")
                problem += f". A header such as {example} is missing, or the separator is none of , tab ; |"
            raise UserError(f"{file}, line {line}: {problem}. {hint[0].upper()}{hint[1:]}")
    return indices


def _note_split_columns(file: Path, table: pd.DataFrame, header: list[str]) -> None:
    """Print a note on each column of a table without the column "split" that holds names of splits alone."""
    for index in table:
        values = {value.strip().casefold() for value in table[index].dropna().unique()} - {""}
        if values and values <= SPLITS.keys():
            print(f'Note: {file}: the column "{header[index].strip()}" is ignored; name it "split" if it holds splits')


def _insert_separator(where: str, cells: list[str]) -> list[str]:
    """Return the cells of a row whose second is split behind its number, with a note; unchanged if it has none.

    Flickr30k's table on Kaggle has one such row: ``2199200615.jpg| 4   A dog runs across the grass .``
    """
    if not (match := UNSEPARATED_NUMBER.fullmatch(cells[1])):
        return cells
    print(f'Note: {where}: a separator is missing behind {match[1]}; the next column is "{abbreviate(match[2])}"')
    return [cells[0], *match.groups(), *cells[2:]]


def _parse_table(file: Path, text: str, separator: str, header: list[str], line: int) -> pd.DataFrame:
    """Return the rows below the header as text, with NaN for cells that a row does not have; raise as read_table.

    ``line`` is that of the header in the file, of which ``text`` begins with the header.
    """
    import pandas as pd

    is_padded = separator != "|" and any(name != name.lstrip() for name in header)  # "image, caption"
    options: dict[str, Any] = {"delimiter": separator, "skipinitialspace": is_padded}
    options |= {"engine": "python", "header": 0, "names": range(len(header)), "index_col": False}
    options |= {"dtype": str, "na_filter": False, "skip_blank_lines": False}  # "NA" and 007 stay text
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE) if separator in UNQUOTED_SEPARATORS else (csv.QUOTE_MINIMAL,):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # an error where columns would be lost
                frame = pd.read_csv(io.StringIO(text, newline=""), quoting=quoting, **options)
        except (ValueError, pd.errors.ParserWarning) as error:  # ValueError: also pandas' ParserError
            reason = str(error)
        else:
            if quoting == csv.QUOTE_NONE:
                print(f"Note: {file}: quotation marks are part of its texts, since they do not come in pairs")
            return frame
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=is_padded, strict=True)
    raise UserError(f"{file}{_find_wrong_row(reader, len(header), line) or f': {reason}'}")


def _find_wrong_row(reader: Any, num_columns: int, first_line: int) -> str:
    """Return the line and the fault of the first wrong row in a csv.reader, as the end of a message, or ""."""
    line = first_line
    try:
        for row in reader:
            if len(row) > num_columns:
                return f", line {line}: it has more columns than the header; a text with commas goes in quotation marks"
            line = first_line + reader.line_num
    except csv.Error as error:
        return f", line {line}: a quotation mark has no partner, or is not doubled within a text ({error})"
    return ""


def _check_quotes(where: str, cells: Sequence[str], index: int, separator: str) -> None:
    """Raise ``UserError`` if a cell holds lines that look like rows: a quotation mark may have swallowed them.

    Such a line has all columns, and at ``index`` a file of the same kind as the row's image.
    """
    suffix = os.path.splitext(cells[index])[1]
    for cell in cells if suffix else ():
        for line in cell.splitlines()[1:]:
            fields = line.split(separator)
            if len(fields) >= len(cells) and fields[index].strip('" ').endswith(suffix):
                raise UserError(f'{where}: a text in quotation marks holds further rows, such as "{abbreviate(line)}"')


def parse_split(name: object, where: str) -> str:
    """Return train, val or test for the name of a split (SPLITS, in any case); "" for None and "".

    Raises ``UserError``, which begins with ``where``, for any other name.
    """
    if name is None or name == "":
        return ""
    if not isinstance(name, str) or name.strip().casefold() not in SPLITS:
        raise UserError(f'{where}: the split "{abbreviate(str(name))}" is none of {", ".join(SPLITS)}')
    return SPLITS[name.strip().casefold()]


def relative_path(path: object, root: Path, where: str) -> str:
    """Return ``path`` relative to ``root``, with /; if it leads outside, a ``UserError`` begins with ``where``."""
    if not isinstance(path, str) or not is_utf8(path):
        raise UserError(f"{where}: the path of its image is no text in UTF-8")
    if len(path) > MAX_PATH or path.startswith("data:") or "://" in path:
        raise UserError(f'{where}: its image is not the path of a file, but an address or data: "{abbreviate(path)}"')
    absolute = os.path.normpath(root / path.replace("\\", "/"))
    name = os.path.relpath(absolute, root)
    if name.split(os.sep)[0] in (os.pardir, os.curdir):
        raise UserError(f"{where}: the image {abbreviate(path)} is not in the folder {root}")
    return name.replace(os.sep, "/")


def check_image_exists(root: Path, name: str, where: str) -> None:
    """Raise ``UserError``, which begins with ``where``, if there is no file ``name`` in the folder ``root``."""
    if not os.path.isfile(root / name):  # unlike Path.is_file, it raises no error for names that no file can have
        raise UserError(f"{where}: there is no image {root / abbreviate(name)}")
