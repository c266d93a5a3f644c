"""Images with captions, as they are published: lists in JSON, Karpathy's JSON, tables (CSV)."""

from __future__ import annotations

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.utils import UserError, derive_seed, is_utf8, read_json

from .protocol import draw_test_set

IMAGE_KEYS, CAPTION_KEYS = (
    ("image", "filepath", "filename"),
    ("caption", "title", "text"),
)  # the names that keys and columns have
SPLIT_NAMES = {"train": "train", "restval": "train", "val": "val", "test": "test"}


class CaptionedImage(Datum):
    """An image and what is said of it. ``label`` is its number in the data set, ``name`` its path below the folder."""

    def __init__(self, impath: str, label: int, captions: tuple[str, ...], name: str):
        super().__init__(impath, label)
        self.captions, self.name = captions, name


@DATASET_REGISTRY.register()
class Captions(DatasetBase):
    """The images in DATASET.FOLDER that the file DATASET.CAPTIONS describes.

    * JSON, a list of ``{"image": "a\\\\b.jpg", "caption": "…" or ["…", …]}``, slashes of either kind;
    * JSON, ``{"images": [{"filename", "filepath", "split", "sentences": [{"raw"}]}]}`` (Karpathy's);
    * any other file: a table with a header, tabs or commas between its columns ``image`` and ``caption``.

    An image may be there several times. Where there is a ``split`` (train, restval, val or test), it holds; with
    CAPTIONS_TEST (and CAPTIONS_VAL) each file is a split; else TEST_PERCENT of the images are for testing, by their
    names alone, so the same ones in every run. Validation images alone are the test set. ``captions`` are those of each
    image, by its label. There are no classes.

    Raises:
        UserError: something is wrong with a file or a row; the message names it.
    """

    def __init__(self, cfg: CfgNode):
        node = cfg.DATASET
        if node.NUM_SHOTS >= 1 or node.SUBSAMPLE_CLASSES != "all":
            raise UserError("DATASET.NUM_SHOTS and SUBSAMPLE_CLASSES are about classes; Captions has none")
        root = Path(node.ROOT).expanduser() / Path(node.FOLDER).expanduser()
        files = {"train": node.CAPTIONS, "val": node.CAPTIONS_VAL, "test": node.CAPTIONS_TEST}
        if node.CAPTIONS_VAL and not node.CAPTIONS_TEST:
            raise UserError("DATASET.CAPTIONS_VAL goes with CAPTIONS_TEST: without, one file holds all splits")
        captions, own = defaultdict(list), {}
        for split, file in files.items():
            if file:
                _collect_captions(
                    captions, own, root / Path(file).expanduser(), root, split if node.CAPTIONS_TEST else None
                )
        self.captions, items = [], defaultdict(list)
        for split, names in _split_images(own, node.TEST_PERCENT, root / node.CAPTIONS).items():
            for name in names:
                image = CaptionedImage(str(root / name), len(self.captions), tuple(captions[name]), name)
                items[split].append(image)
                self.captions.append(image.captions)
        super().__init__(train_x=items["train"], val=items["val"], test=items["test"])

    get_num_classes = staticmethod(lambda data_source: 0)
    get_lab2cname = staticmethod(lambda data_source: ({}, []))


def _collect_captions(captions: dict[str, list], splits: dict, file: Path, root: Path, split: str | None) -> None:
    """Add what a file says to the captions and the split of each image, by its path below ``root``.

    Args:
        split: to which all rows belong; None: the rows tell, or nobody does.
    """
    for number, row in _read_rows(file):
        where = f"{file}, row {number}"
        name = _relative_path(_get_value(row, IMAGE_KEYS, where), root, where)
        texts = _get_value(row, CAPTION_KEYS, where)
        texts = texts if isinstance(texts, list) else [texts]
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"{where}: a caption of {name} is empty, or no text")
        own = split or row.get("split")
        if own not in (None, "", *SPLIT_NAMES):
            raise UserError(f'{where}: the split "{own}" is none of {", ".join(SPLIT_NAMES)}')
        own = SPLIT_NAMES.get(own)
        if name not in splits and not os.path.isfile(root / name):
            raise UserError(f"{where}: there is no picture {root / name}")
        if splits.setdefault(name, own) != own:
            raise UserError(f"{where}: {name} is in two splits, {splits[name]} and {own}")
        captions[name] += texts


def _read_rows(file: Path) -> Iterator[tuple[int, dict]]:
    """Yield the rows of a file with their numbers: places in a list, counted from 1, or lines of a table."""
    if not os.path.isfile(file):  # which takes any text for a name
        raise UserError(f"there is no file {file}; DATASET.CAPTIONS names it, below FOLDER")
    if file.suffix.lower() != ".json":
        yield from _read_table(file)
        return
    content = read_json(file)
    karpathy = isinstance(content, dict) and isinstance(content.get("images"), list)
    rows = content["images"] if karpathy else content
    if not isinstance(rows, list):
        raise UserError(f'{file} is neither a list of images with captions nor an object with the key "images"')
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{file}, row {number}: it is not an object with keys image and caption")
        yield number, _convert_karpathy(row) if karpathy else row


def _read_table(file: Path) -> Iterator[tuple[int, dict]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            delimiter = "\t" if "\t" in lines.readline() else ","
            lines.seek(0)
            reader = csv.DictReader(lines, delimiter=delimiter, strict=True)  # else an open quote swallows what follows
            if twice := [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]:
                raise UserError(f'{file}: there are two columns "{twice[0]}"')
            for row in reader:
                if None in row:
                    hint = "a caption with commas goes in quotation marks"
                    raise UserError(f"{file}, row {reader.line_num}: it has more columns than the header; {hint}")
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as a table in UTF-8: {error}") from error


def _convert_karpathy(row: dict) -> dict:
    sentences = row.get("sentences")
    sentences = sentences if isinstance(sentences, list) else [sentences]
    raw = [sentence.get("raw") if isinstance(sentence, dict) else sentence for sentence in sentences]
    name, folder = row.get("filename"), row.get("filepath")
    if isinstance(name, str) and folder:
        name = f"{folder}/{name}"
    return {"image": name, "caption": raw, "split": row.get("split")}


def _get_value(row: dict, keys: tuple[str, ...], where: str) -> object:
    for key in keys:
        if row.get(key) is not None:
            return row[key]
    raise UserError(f"{where}: there is no {' or '.join(keys)}; it has {', '.join(map(str, row)) or 'nothing'}")


def _relative_path(path: object, root: Path, where: str) -> str:
    """Return the path below ``root``, with forward slashes."""
    if not isinstance(path, str) or not is_utf8(path):
        raise UserError(f"{where}: the name of its picture is no text in UTF-8")
    whole = os.path.normpath(root / path.replace("\\", "/"))
    name = os.path.relpath(whole, root)
    if name.split(os.sep)[0] in (os.pardir, os.curdir):
        raise UserError(f"{where}: the picture {path} is not in the folder {root}")
    return name.replace(os.sep, "/")


def _split_images(own: dict[str, str | None], test_percent: float, file: Path) -> dict[str, list[str]]:
    """Return the names of each split's images, in their order in the files; ``own`` has the splits that these tell."""
    told = set(own.values())
    if told == {None}:
        own = {**own, **dict.fromkeys(draw_test_set(own, test_percent, derive_seed), "test")}
    elif None in told:
        lacking = next(name for name, split in own.items() if split is None)
        raise UserError(f"{file}: {lacking} has no split, but others have")
    splits = {
        part: [name for name, split in own.items() if (split or "train") == part] for part in SPLIT_NAMES.values()
    }
    if splits["val"] and not splits["test"]:
        splits["val"], splits["test"] = [], splits["val"]
    for split in ("train", "test"):
        if not splits[split]:
            raise UserError(f"{file}: no picture is for {split}; there are {len(own)} pictures")
    return splits
