"""Files with captions, as people have them: JSON (lists, lines, COCO's, Karpathy's), tables, Flickr's token files."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dassl.config.merge import abbreviate
from dassl.utils import UserError, error_reason, read_json, read_text

from .table import IMAGE_COLUMNS, read_table, simplify_name

# Names of the key or column of captions in published files; the first present counts.
CAPTION_COLUMNS = ("caption", "captions", "title", "text", "comment", "sentence", "sentences", "description", "raw")
TOKEN_LINE = re.compile(r"[^\t]+#\d+\t")  # the beginning of a line of Flickr's token files: "1000092795.jpg#0"


def read_captions(file: Path, image_column: str = "", caption_column: str = "") -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, row) of a caption file; a row has the keys image, caption and, if it is in the file, split.

    A caption is a text or a list of texts. The number is the position in a list, from 1, or the line in a text file.

    Args:
        image_column: name of the key or column of images; "" for the first of IMAGE_COLUMNS that there is.
        caption_column: the same for captions; "" for CAPTION_COLUMNS.

    Raises:
        UserError: the file is missing or of another form; the message names it and, if possible, the row.
    """
    if not os.path.isfile(file):  # unlike Path.is_file, it raises no error for names that no file can have
        raise UserError(f"there is no file {file}; DATASET.CAPTIONS names it, below FOLDER")
    columns = {
        "image": [image_column] if image_column else IMAGE_COLUMNS,
        "caption": [caption_column] if caption_column else CAPTION_COLUMNS,
        "split": ["split"],
    }
    if file.suffix.lower() not in (".json", ".jsonl"):
        yield from read_token_file(file) if is_token_file(file) else read_table(file, columns)
        return
    for number, row in _read_json_lines(file) if file.suffix.lower() == ".jsonl" else _read_json_rows(file):
        where = f"{file}, row {number}"
        if not isinstance(row, dict):
            raise UserError(f"{where}: it is not an object with keys image and caption")
        yield number, _select_keys(row, columns, where)


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


# ---- JSON ----


def _read_json_rows(file: Path) -> Iterator[tuple[int, object]]:
    """Yield (number, row) of a JSON file: a list, COCO's captions, or Karpathy's splits."""
    content = read_json(file)
    has_images = isinstance(content, dict) and isinstance(content.get("images"), list)
    if has_images and isinstance(content.get("annotations"), list):
        rows = _join_coco(content, file)
    elif has_images:
        rows = (_convert_karpathy(row) if isinstance(row, dict) else row for row in content["images"])
    elif isinstance(content, list):
        rows = iter(content)
    else:
        raise UserError(f'{file} is neither a list of images with captions nor an object with the key "images"')
    yield from enumerate(rows, start=1)


def _join_coco(content: dict, file: Path) -> Iterator[object]:
    """Yield each annotation of COCO's JSON with the file name of its image as ``image``; note images without any."""
    names = {repr(image.get("id")): image.get("file_name") for image in content["images"] if isinstance(image, dict)}
    captioned = {repr(row.get("image_id")) for row in content["annotations"] if isinstance(row, dict)}
    if missing := names.keys() - captioned:
        print(f"Note: {file}: {len(missing):,} of {len(names):,} images have no caption, and are left out")
    for number, row in enumerate(content["annotations"], start=1):
        if isinstance(row, dict):
            if (image := names.get(repr(row.get("image_id")))) is None:
                problem = f"no image has its image_id {abbreviate(repr(row.get('image_id')))}"
                raise UserError(f"{file}, row {number} of annotations: {problem}")
            row = {"image": image, "caption": row.get("caption")}
        yield row


def _convert_karpathy(row: dict) -> dict:
    """Return an entry of Karpathy's JSON as a row with the keys image, caption (a list) and split."""
    sentences = row.get("sentences")
    sentences = sentences if isinstance(sentences, list) else [sentences]
    raw = [sentence.get("raw") if isinstance(sentence, dict) else sentence for sentence in sentences]
    name, folder = row.get("filename"), row.get("filepath")
    if isinstance(name, str) and folder:
        name = f"{folder}/{name}"
    return {"image": name, "caption": raw, "split": row.get("split")}


def _read_json_lines(file: Path) -> Iterator[tuple[int, object]]:
    """Yield (line number, value) of a file with a JSON value a line, such as Hugging Face's metadata.jsonl."""
    for number, line in enumerate(io.StringIO(read_text(file), newline=None), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{file}, row {number}: it is not valid JSON: {error_reason(error)}") from error


# ---- Flickr's token files ----


def is_token_file(file: Path) -> bool:
    """Return whether a text file begins like Flickr8k's and Flickr30k's token files, which have no header."""
    with file.open("rb") as lines:
        return bool(TOKEN_LINE.match(lines.readline(1000).decode("utf-8-sig", "replace")))


def read_token_file(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, row) of lines ``<image>#<number of the caption>``, a tab, and the caption."""
    for number, line in enumerate(io.StringIO(read_text(file), newline=None), start=1):
        if line.strip():
            if not TOKEN_LINE.match(line):
                raise UserError(
                    f'{file}, row {number}: "{abbreviate(line.strip())}" is not "<image>#<number><tab><caption>"'
                )
            image, _, caption = line.rstrip("\n").partition("\t")
            yield number, {"image": image.rpartition("#")[0], "caption": caption}
