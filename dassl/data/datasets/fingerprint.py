"""What a split holds, as a checksum: wherever the data lie it is the same; with another draw it is another."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from functools import cache

from .base_dataset import DatasetBase, Datum

SPLITS = ("train_x", "train_u", "val", "test")


def fingerprint(items: Iterable[Datum], root: str | os.PathLike) -> str:
    """SHA-256 (hexadecimal) over the images of a split in their order: the path below ``root`` with forward slashes,
    the label, the domain, the class name, and the captions of those that have some."""
    start = os.path.abspath(os.path.expanduser(root))

    @cache  # a million images lie in a thousand folders
    def below(folder: str) -> str:
        return os.path.relpath(folder, start).replace(os.sep, "/")

    digest = hashlib.sha256()
    for item in items:
        folder, _, name = item.impath.replace(os.sep, "/").rpartition("/")
        told = f"{below(folder)}\0{name}\0{item.label}\0{item.domain}\0{item.classname}\0"
        told += "\0".join((*getattr(item, "captions", ()), "\n"))
        digest.update(told.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def split_fingerprints(dataset: DatasetBase, root: str | os.PathLike) -> dict[str, dict]:
    """``{"images": their number, "sha256": fingerprint}`` of each split that a data set has."""
    splits = {name: getattr(dataset, name, None) for name in SPLITS}
    return {name: {"images": len(items), "sha256": fingerprint(items, root)} for name, items in splits.items() if items}
