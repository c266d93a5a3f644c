"""The data set Captions: images with captions, listed in a file."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from yacs.config import CfgNode

from dassl.config.merge import abbreviate
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.utils import UserError, derive_seed

from .caption_files import read_captions
from .protocol import draw_test_set
from .table import SPLITS, check_image_exists, parse_split, relative_path


class CaptionedImage(Datum):
    """An image with its captions. ``label`` is its number, from 0, ``name`` its path relative to DATASET.FOLDER."""

    def __init__(self, impath: str, label: int, captions: tuple[str, ...], name: str):
        super().__init__(impath, label)
        self.captions, self.name = captions, name


@DATASET_REGISTRY.register()
class Captions(DatasetBase):
    """The images in DATASET.FOLDER that the file DATASET.CAPTIONS lists with their captions. There are no classes.

    * JSON, a list of ``{"image": "a\\\\b.jpg", "caption": "…" or ["…", …]}``, slashes of either kind;
    * JSON lines (.jsonl, .json), an object like these in each line, as Hugging Face's ``metadata.jsonl``;
    * JSON, ``{"images": [{"filename", "filepath", "split", "sentences": [{"raw"}]}]}`` (Karpathy's);
    * JSON, ``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`` (COCO's);
    * Flickr's token files, lines of ``<image>#<number>``, a tab and a caption;
    * any other file: a table with a header and the columns ``image`` and ``caption`` (``datasets.table``).

    Keys and columns may have other usual names, or those in IMAGE_COLUMN and CAPTION_COLUMN. An image may have several
    rows. The splits come from the rows' ``split`` (SPLITS in datasets/table.py). With CAPTIONS_TEST (and CAPTIONS_VAL),
    each file is one split, whatever its rows say. With neither ``split`` nor CAPTIONS_TEST, the fraction TEST_PERCENT
    (0 to 1) of the images, drawn by their names alone, is for testing. Without test images, the validation images
    become the test images.

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
        split_by_name: dict[str, str] = {}
        for split, name in files.items():
            if name:
                file = root / Path(name).expanduser()
                for place, row in read_captions(file, node.IMAGE_COLUMN, node.CAPTION_COLUMN):
                    row["split"] = split if node.CAPTIONS_TEST else row.get("split")
                    _add_row(captions, split_by_name, row, root, place)
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


def _add_row(captions: dict[str, list[str]], split_by_name: dict[str, str], row: dict, root: Path, where: str) -> None:
    """Add ``row`` (image, caption, split) to ``captions`` and ``split_by_name``, whose keys are paths below ``root``.

    Raise ``UserError``, which begins with ``where``, if the row is wrong.
    """
    name = relative_path(row["image"], root, where)
    texts = row["caption"] if isinstance(row["caption"], list) else [row["caption"]]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"{where}: a caption of {abbreviate(name)} is empty, or no text")
    split = parse_split(row["split"], where)
    if name not in split_by_name:
        check_image_exists(root, name, where)
    if split_by_name.setdefault(name, split) != split:
        raise UserError(f"{where}: {abbreviate(name)} is in two splits, {split_by_name[name]} and {split}")
    captions[name] += texts


def _split_images(split_by_name: dict[str, str], test_percent: float, file: Path) -> dict[str, list[str]]:
    """Return the names by split (train, val, test); if none has a split, draw the fraction ``test_percent`` as test.

    ``file`` is for messages. Validation images become the test images if there are no others.
    """
    known = set(split_by_name.values())
    if known == {""}:
        test = draw_test_set(split_by_name, test_percent, derive_seed)
        split_by_name = {**split_by_name, **dict.fromkeys(test, "test")}
    elif "" in known:
        name = next(name for name, split in split_by_name.items() if not split)
        raise UserError(f"{file}: {abbreviate(name)} has no split, but others have")
    splits: dict[str, list[str]] = {split: [] for split in SPLITS.values()}
    for name, split in split_by_name.items():
        splits[split or "train"].append(name)
    if splits["val"] and not splits["test"]:
        splits["val"], splits["test"] = [], splits["val"]
    for split in ("train", "test"):
        if not splits[split]:
            raise UserError(f"{file}: no image is for {split}; there are {len(split_by_name)} images")
    return splits
