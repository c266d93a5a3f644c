"""The data set Captions: images with captions, listed in a JSON file, Karpathy's JSON or a table (CSV)."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.utils import UserError, derive_seed, read_json

from .protocol import draw_test_set
from .table import read_table, relative_path

# Keys and columns of published caption files; the first one that a row has counts.
IMAGE_KEYS = ("image", "filepath", "filename")
CAPTION_KEYS = ("caption", "title", "text")
SPLIT_ALIASES = {"train": "train", "restval": "train", "val": "val", "test": "test"}  # Karpathy's names -> ours


class CaptionedImage(Datum):
    """An image with its captions. ``label`` is its number, from 0, ``name`` its path relative to DATASET.FOLDER."""

    def __init__(self, impath: str, label: int, captions: tuple[str, ...], name: str):
        super().__init__(impath, label)
        self.captions, self.name = captions, name


@DATASET_REGISTRY.register()
class Captions(DatasetBase):
    """The images in DATASET.FOLDER that the file DATASET.CAPTIONS lists with their captions. There are no classes.

    * JSON, a list of ``{"image": "a\\\\b.jpg", "caption": "…" or ["…", …]}``, slashes of either kind;
    * JSON, ``{"images": [{"filename", "filepath", "split", "sentences": [{"raw"}]}]}`` (Karpathy's);
    * any other file: a table with a header, tabs or commas between its columns ``image`` and ``caption``.

    An image may have several rows. The splits come from the rows' ``split`` (train, restval, val or test). With
    CAPTIONS_TEST (and CAPTIONS_VAL), each file is one split, whatever its rows say. With neither ``split`` nor
    CAPTIONS_TEST, the fraction TEST_PERCENT (0 to 1) of the images, drawn by their names alone, is for testing. Without
    test images, the validation images become the test images.

    The label of an image is its number; ``captions`` lists each image's tuple of captions by this number.

    Raises:
        UserError: a file or a row is wrong; the message names it.
    """

    orientation = "exif"  # as ImageFolder

    def __init__(self, cfg: CfgNode):
        node = cfg.DATASET
        if node.NUM_SHOTS >= 1 or node.FEWSHOT_FILE or node.SUBSAMPLE_CLASSES != "all":
            raise UserError("DATASET.NUM_SHOTS, FEWSHOT_FILE and SUBSAMPLE_CLASSES need classes; Captions has none")
        root = Path(node.ROOT).expanduser() / Path(node.FOLDER).expanduser()
        files = {"train": node.CAPTIONS, "val": node.CAPTIONS_VAL, "test": node.CAPTIONS_TEST}
        if node.CAPTIONS_VAL and not node.CAPTIONS_TEST:
            raise UserError("DATASET.CAPTIONS_VAL goes with CAPTIONS_TEST: without, one file holds all splits")
        captions: dict[str, list[str]] = defaultdict(list)
        split_by_name: dict[str, str | None] = {}
        for split, file in files.items():
            if file:
                file_split = split if node.CAPTIONS_TEST else None
                _collect_captions(captions, split_by_name, root / Path(file).expanduser(), root, file_split)
        self.captions: list[tuple[str, ...]] = []
        items: dict[str, list[Datum]] = defaultdict(list)
        for split, names in _split_images(split_by_name, node.TEST_PERCENT, root / node.CAPTIONS).items():
            for name in names:
                image = CaptionedImage(str(root / name), len(self.captions), tuple(captions[name]), name)
                items[split].append(image)
                self.captions.append(image.captions)
        super().__init__(train_x=items["train"], val=items["val"], test=items["test"])

    get_num_classes = staticmethod(lambda data_source: 0)
    get_lab2cname = staticmethod(lambda data_source: ({}, []))


def _collect_captions(
    captions: dict[str, list[str]], split_by_name: dict[str, str | None], file: Path, root: Path, file_split: str | None
) -> None:
    """Add the rows of ``file`` to ``captions`` and ``split_by_name``, whose keys are paths relative to ``root``.

    ``file_split`` is the split of all rows. If it is None, a row may name its split; if not, the split is None.
    """
    for number, row in _read_rows(file):
        where = f"{file}, row {number}"
        name = relative_path(_get_value(row, IMAGE_KEYS, where), root, where)
        texts = _get_value(row, CAPTION_KEYS, where)
        texts = texts if isinstance(texts, list) else [texts]
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"{where}: a caption of {name} is empty, or no text")
        alias = file_split or row.get("split")
        if alias not in (None, "", *SPLIT_ALIASES):
            raise UserError(f'{where}: the split "{alias}" is none of {", ".join(SPLIT_ALIASES)}')
        split = SPLIT_ALIASES.get(alias)
        if name not in split_by_name and not os.path.isfile(root / name):
            raise UserError(f"{where}: there is no image {root / name}")
        if split_by_name.setdefault(name, split) != split:
            raise UserError(f"{where}: {name} is in two splits, {split_by_name[name]} and {split}")
        captions[name] += texts


def _read_rows(file: Path) -> Iterator[tuple[int, dict]]:
    """Yield (number, row) of a caption file; the number is the position in a list, from 1, or the line in a table."""
    if not os.path.isfile(file):  # unlike Path.is_file, it raises no error for names that no file can have
        raise UserError(f"there is no file {file}; DATASET.CAPTIONS names it, below FOLDER")
    if file.suffix.lower() != ".json":
        yield from read_table(file)
        return
    content = read_json(file)
    is_karpathy = isinstance(content, dict) and isinstance(content.get("images"), list)
    rows = content["images"] if is_karpathy else content
    if not isinstance(rows, list):
        raise UserError(f'{file} is neither a list of images with captions nor an object with the key "images"')
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{file}, row {number}: it is not an object with keys image and caption")
        yield number, _convert_karpathy(row) if is_karpathy else row


def _convert_karpathy(row: dict) -> dict:
    """Return an entry of Karpathy's JSON as a row with the keys image, caption (a list) and split."""
    sentences = row.get("sentences")
    sentences = sentences if isinstance(sentences, list) else [sentences]
    raw = [sentence.get("raw") if isinstance(sentence, dict) else sentence for sentence in sentences]
    name, folder = row.get("filename"), row.get("filepath")
    if isinstance(name, str) and folder:
        name = f"{folder}/{name}"
    return {"image": name, "caption": raw, "split": row.get("split")}


def _get_value(row: dict, keys: tuple[str, ...], where: str) -> object:
    """Return the value of the first of ``keys`` that ``row`` has, not None; ``where`` begins the :class:`UserError`."""
    for key in keys:
        if row.get(key) is not None:
            return row[key]
    raise UserError(f"{where}: there is no {' or '.join(keys)}; it has {', '.join(map(str, row)) or 'nothing'}")


def _split_images(split_by_name: dict[str, str | None], test_percent: float, file: Path) -> dict[str, list[str]]:
    """Return the names by split (train, val, test); if none has a split, draw the fraction ``test_percent`` as test.

    ``file`` is for messages. Validation images become the test images if there are no others.
    """
    known = set(split_by_name.values())
    if known == {None}:
        test = draw_test_set(split_by_name, test_percent, derive_seed)
        split_by_name = {**split_by_name, **dict.fromkeys(test, "test")}
    elif None in known:
        name = next(name for name, split in split_by_name.items() if split is None)
        raise UserError(f"{file}: {name} has no split, but others have")
    splits: dict[str, list[str]] = {split: [] for split in SPLIT_ALIASES.values()}
    for name, split in split_by_name.items():
        splits[split or "train"].append(name)
    if splits["val"] and not splits["test"]:
        splits["val"], splits["test"] = [], splits["val"]
    for split in ("train", "test"):
        if not splits[split]:
            raise UserError(f"{file}: no image is for {split}; there are {len(split_by_name)} images")
    return splits
