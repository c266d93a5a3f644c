"""Fingerprints of splits: checksums of the list of images, which do not depend on where the data lie."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from functools import cache

from yacs.config import CfgNode

from dassl.data.decoding import count_changes
from dassl.utils import Decoding, relpath

from .base_dataset import DatasetBase, Datum

SPLITS = ("train_x", "train_u", "val", "test")  # attributes of DatasetBase
MAX_SIZED = 200_000  # images of which the sizes are read: a second on a local disk, minutes on a slow one for ImageNet


def get_image_root(cfg: CfgNode) -> str:
    """Return the folder DATASET.ROOT/FOLDER, to which fingerprints relate the images' paths."""
    return os.path.join(os.path.expanduser(cfg.DATASET.ROOT), os.path.expanduser(cfg.DATASET.FOLDER))


def split_fingerprint(items: Iterable[Datum], root: str | os.PathLike) -> str:
    """Return the SHA-256 (hexadecimal) of a split's list of images, in their order; no image is read.

    It covers each image's path below ``root`` (with forward slashes), label, domain and class name, and any captions.
    """
    start = os.path.abspath(os.path.expanduser(root))

    @cache  # millions of images lie in few folders
    def relative_folder(folder: str) -> str:
        """Return the path of ``folder`` below ``root`` with forward slashes."""
        return relpath(folder, start).replace(os.sep, "/")

    digest = hashlib.sha256()
    for item in items:
        folder, _, name = item.impath.replace(os.sep, "/").rpartition("/")
        fields = f"{relative_folder(folder)}\0{name}\0{item.label}\0{item.domain}\0{item.classname}\0"
        fields += "\0".join((*getattr(item, "captions", ()), "\n"))
        digest.update(fields.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def split_fingerprints(
    dataset: DatasetBase, root: str | os.PathLike, decoding: Decoding | None = None
) -> dict[str, dict]:
    """Return ``{"images": number of images, "sha256": fingerprint}`` for each non-empty split of a data set.

    For up to MAX_SIZED images, there is also ``sizes`` (``digest_sizes``), which notices most replaced images. If
    ``decoding`` changes images from the original's, there is ``decoding`` (``count_changes``).
    """
    fingerprints: dict[str, dict] = {}
    decoding = decoding if getattr(dataset, "has_images", True) else None
    for name in SPLITS:
        if items := getattr(dataset, name, None):
            entry = {"images": len(items), "sha256": split_fingerprint(items, root), **digest_sizes(items)}
            if decoding and (changes := count_changes([item.impath for item in items], decoding)):
                entry["decoding"] = changes
            fingerprints[name] = entry
    return fingerprints


def digest_sizes(items: Sequence[Datum]) -> dict[str, str]:
    """Return {"sizes": SHA-256 (hexadecimal) of the sizes of the images' files, in their order}.

    Returns {} for more than MAX_SIZED images, or if a file is missing.
    """
    if len(items) > MAX_SIZED:
        return {}
    try:
        sizes = [os.path.getsize(item.impath) for item in items]
    except (OSError, ValueError):  # a reader of the image reports it
        return {}
    return {"sizes": hashlib.sha256(json.dumps(sizes).encode()).hexdigest()}
