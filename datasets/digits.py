"""The data set Digits: 1,797 scans of handwritten digits from scikit-learn (UCI's optical recognition, 8x8 pixels)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError, mkdir_if_missing

from .class_folders import CLASSNAMES_FILE, ClassFolders

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@DATASET_REGISTRY.register()
class Digits(ClassFolders):
    """Handwritten digits in ImageNet's layout, which the first use writes to ``<DATASET.ROOT>/digits``."""

    dataset_dir = "digits"

    def __init__(self, cfg: CfgNode):
        folder = Path(cfg.DATASET.ROOT).expanduser() / self.dataset_dir
        if not folder.exists():
            write_digits(folder)
        super().__init__(cfg)


def read_scans() -> tuple[np.ndarray, np.ndarray]:
    """Return the scans, uint8 (1797, 8, 8) from 0 to 255, and the digits that they show, int64 (1797,)."""
    from sklearn.datasets import load_digits

    scans, digits = load_digits(return_X_y=True)
    return np.uint8(np.rint(scans.reshape(-1, 8, 8) * (255 / 16))), digits  # scikit-learn's values are 0 to 16


def write_digits(folder: Path) -> None:
    """Write the scans to ``folder`` as ``images/{train,val}/<digit>/<index>.png``, with ``classnames.txt``.

    Every second scan of a digit is for testing (val), so both halves show the same writers. A temporary folder is
    renamed to ``folder`` at the end, so an interruption leaves no incomplete data set.
    """
    pixels, digits = read_scans()
    print(f"Writing scikit-learn's digits to {folder}")
    mkdir_if_missing(folder.parent)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".digits.") as temporary:
            unfinished = Path(temporary, "digits")
            for digit in range(len(DIGIT_NAMES)):
                for position, index in enumerate(np.flatnonzero(digits == digit)):
                    path = unfinished / "images" / ("train", "val")[position % 2] / str(digit) / f"{index:04}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels[index]).save(path)
            lines = (f"{digit} {name}\n" for digit, name in enumerate(DIGIT_NAMES))
            (unfinished / CLASSNAMES_FILE).write_text("".join(lines), encoding="utf-8")
            try:
                unfinished.rename(folder)
            except OSError:
                if not folder.is_dir():  # if it is, another process has written the same scans
                    raise
    except OSError as error:
        raise UserError(f"cannot write the digits to {folder}: {error.strerror}") from error
