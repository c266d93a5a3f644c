"""Handwritten digits: the 1,797 scans that come with scikit-learn (UCI's optical recognition set, 8x8 pixels)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError, mkdir_if_missing

from .class_folders import CLASSNAMES_FILE, ClassFolders

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@DATASET_REGISTRY.register()
class Digits(ClassFolders):
    """Written below DATASET.ROOT on first use; from then on a data set like any other."""

    dataset_dir = "digits"

    def __init__(self, cfg: CfgNode):
        folder = Path(cfg.DATASET.ROOT).expanduser() / self.dataset_dir
        if not folder.exists():
            write_digits(folder)
        super().__init__(cfg)


def read_scans() -> tuple[np.ndarray, np.ndarray]:
    """Return the scans, uint8 of shape (1797, 8, 8), and the digits that they show."""
    from sklearn.datasets import load_digits

    scans, digits = load_digits(return_X_y=True)
    return np.uint8(np.rint(scans.reshape(-1, 8, 8) * (255 / 16))), digits  # scans count ink from 0 to 16


def write_digits(folder: Path) -> None:
    """Write the scans as ``images/{train,val}/<digit>/<index>.png`` with ``classnames.txt``, all of it or nothing.

    Of each digit's scans, every second one is for testing, so both halves hold the same hands in equal parts.
    """
    pixels, digits = read_scans()
    print(f"Writing scikit-learn's digits to {folder}")
    mkdir_if_missing(folder.parent)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".digits.") as temporary:
            whole = Path(temporary, "digits")
            for digit in range(len(NAMES)):
                for place, index in enumerate(np.flatnonzero(digits == digit)):
                    path = whole / "images" / ("train", "val")[place % 2] / str(digit) / f"{index:04}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels[index]).save(path)
            lines = (f"{digit} {name}\n" for digit, name in enumerate(NAMES))
            (whole / CLASSNAMES_FILE).write_text("".join(lines), encoding="utf-8")
            try:
                whole.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process wrote the same scans meanwhile
                    raise
    except OSError as error:
        raise UserError(f"cannot write the digits to {folder}: {error.strerror}") from error
