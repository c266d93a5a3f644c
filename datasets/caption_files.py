"""Files with captions, as people have them: JSON (lists, lines, COCO's, Karpathy's), tables, Flickr's token files."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dassl.config.merge import abbreviate
from dassl.utils import UserError, error_reason, read_json, read_text
from dassl.utils.images import is_image_name

from .table import IMAGE_COLUMNS, read_table, simplify_name

# Names of the key or column of captions in published files; the first present counts.
CAPTION_COLUMNS = ("caption", "captions", "title", "text", "comment", "sentence", "sentences", "description", "raw")
TOKEN_LINE = re.compile(r"[^\t]+#\d+\t")  # the beginning of a line of Flickr's token files: "1000092795.jpg#0"


def read_captions(file: Path, image_column: str = "", caption_column: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) of a caption file; a row has the keys image, caption and, if it is in the file, split.

    A caption is a text or a list of texts. The place, for messages, is the file and the position in a list, from 1, or
    the line of a text file.

    Args:
        image_column: name of the key or column of images; "" for the first of IMAGE_COLUMNS that there is.
        caption_column: the same for captions; "" for CAPTION_COLUMNS.

    Raises:
        UserError: the file is missing or of another form, or has no columns for the names in the arguments; the
            message names it and, if possible, the place.
    """
    if not os.path.isfile(file):  # unlike Path.is_file, it raises no error for names that no file can have
        raise UserError(f"there is no file {file}; DATASET.CAPTIONS names it, below FOLDER")
    columns = {
        "image": [image_column] if image_column else IMAGE_COLUMNS,
        "caption": [caption_column] if caption_column else CAPTION_COLUMNS,
        "split": ["split"],
    }
    if file.suffix.lower() in (".json", ".jsonl"):
        for place, row in _read_json_rows(file, columns) if file.suffix.lower() == ".json" else _read_json_lines(file):
            if not isinstance(row, dict):
                raise UserError(f"{place}: it is not an object with keys image and caption")
            yield place, _select_keys(row, columns, place)
    elif not is_token_file(file):
        for line, row in read_table(file, columns):
            yield f"{file}, line {line}", {**row, "caption": _parse_list(row["caption"])}
    elif image_column or caption_column:
        raise UserError(f"{file} has no columns, only lines <image>#<number>: leave IMAGE_COLUMN, CAPTION_COLUMN empty")
    else:
        yield from read_token_file(file)


def _select_keys(row: dict, columns: Mapping[str, Sequence[str]], where: str) -> dict[str, Any]:
    """Return the values of ``row`` by the keys of ``columns``, which hold their names in the file; no split is {}."""
    values = {simplify_name(key): value for key, value in row.items() if value is not None}
    selected = {}
    for key, names in columns.items():
        name = next((name for name in map(simplify_name, names) if name in values), None)
        if name is not None:
            selected[key] = values[name]
        elif key != "split":
            known = abbreviate(", ".join(map(str, row))) or "nothing"
            hint = f"DATASET.{key.upper()}_COLUMN names another key"
            raise UserError(f"{where}: there is no {' or '.join(names[:3])}; it has {known}. {hint}")
    return selected


def _parse_list(text: str) -> str | list[str]:
    """Return the texts in a cell of a table that holds a list of them, as JSON or Python writes it; else ``text``."""
    parsers: tuple[Callable[[str], object], ...] = (json.loads, ast.literal_eval)
    for parse in parsers if text.startswith("[") and text.endswith("]") else ():
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):  # the last: of literal_eval
            texts = parse(text)
            if isinstance(texts, list) and texts and all(isinstance(each, str) for each in texts):
                return texts
    return text


# ---- JSON ----


def _read_json_rows(file: Path, columns: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, object]]:
    """Yield (place, row) of a JSON file: a list, COCO's captions, Karpathy's splits, or an object in each line."""
    try:
        content = read_json(file)
    except UserError as error:
        if getattr(error.__cause__, "msg", "") != "Extra data":  # json's message for several values
            raise
        yield from _read_json_lines(file)
        return
    has_images = isinstance(content, dict) and isinstance(content.get("images"), list)
    if has_images and isinstance(content.get("annotations"), list):
        yield from _join_coco(content, file, columns)
        return
    if has_images:
        rows = (_convert_karpathy(row) if isinstance(row, dict) else row for row in content["images"])
    elif isinstance(content, list):
        rows = iter(content)
    else:
        raise UserError(f'{file} is neither a list of images with captions nor an object with the key "images"')
    for number, row in enumerate(rows, start=1):
        yield f"{file}, row {number}", row


def _join_coco(content: dict, file: Path, columns: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, object]]:
    """Yield (place, row) of each annotation of COCO's JSON, with its image's keys for image and split in ``columns``.

    A note counts images without annotation.
    """
    images = {repr(image.get("id")): image for image in content["images"] if isinstance(image, dict)}
    captioned = {repr(row.get("image_id")) for row in content["annotations"] if isinstance(row, dict)}
    if missing := images.keys() - captioned:
        print(f"Note: {file}: {len(missing):,} of {len(images):,} images have no caption, and are left out")
    names = {simplify_name(name) for key in ("image", "split") for name in columns[key]}
    for number, row in enumerate(content["annotations"], start=1):
        place = f"{file}, row {number} of annotations"
        if isinstance(row, dict):
            if (image := images.get(repr(row.get("image_id")))) is None:
                raise UserError(f"{place}: no image has its image_id {abbreviate(repr(row.get('image_id')))}")
            row = {**row, **{key: value for key, value in image.items() if simplify_name(key) in names}}
        yield place, row


def _convert_karpathy(row: dict) -> dict:
    """Return an entry of Karpathy's JSON with its ``filepath`` as part of ``filename``, and ``sentences`` as texts."""
    name, folder, sentences = row.get("filename"), row.get("filepath"), row.get("sentences")
    row = dict(row)
    if isinstance(name, str):
        row.pop("filepath", None)
        row["filename"] = f"{folder}/{name}" if folder else name
    if isinstance(sentences, list):
        row["sentences"] = [each.get("raw") if isinstance(each, dict) else each for each in sentences]
    return row


def _read_json_lines(file: Path) -> Iterator[tuple[str, object]]:
    """Yield (place, value) of a file with a JSON value a line, such as Hugging Face's metadata.jsonl."""
    for number, line in enumerate(io.StringIO(read_text(file), newline=None), start=1):
        if line.strip():
            place = f"{file}, line {number}"
            try:
                yield place, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{place}: it is not valid JSON: {error_reason(error)}") from error


# ---- Flickr's token files ----


def is_token_file(file: Path) -> bool:
    """Return whether a text file begins like Flickr8k's and Flickr30k's token files, which have no header."""
    with file.open("rb") as lines:
        return bool(TOKEN_LINE.match(lines.readline(1000).decode("utf-8-sig", "replace")))


def read_token_file(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (place, row) of lines ``<image>#<number of the caption>``, a tab, and the caption.

    A note counts lines whose image does not have an image's extension, such as Flickr8k's ``….jpg.1``, which no archive
    of its images holds; they are left out.
    """
    no_images = []
    for number, line in enumerate(io.StringIO(read_text(file), newline=None), start=1):
        if line.strip():
            place = f"{file}, line {number}"
            if not TOKEN_LINE.match(line):
                raise UserError(f'{place}: "{abbreviate(line.strip())}" is not "<image>#<number><tab><caption>"')
            image, _, caption = line.rstrip("\n").partition("\t")
            image = image.rpartition("#")[0]
            if is_image_name(os.path.basename(image)):
                yield place, {"image": image, "caption": caption}
            else:
                no_images.append(image)
    if no_images:
        names = f"do not name an image file, such as {abbreviate(no_images[0])}"
        print(f"Note: {file}: {len(no_images):,} lines {names}, and are left out")
