"""Images that cannot be read: finding them, reporting them, leaving them out of a data set."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import partial

from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from dassl.utils import Decoding, UnreadableImageError, UserError, read_image

from .datasets import DatasetBase
from .datasets.fingerprint import SPLITS


def _read_error(path: str, decoding: Decoding) -> str:
    """Return the reason why an image file cannot be read; an empty string if it can."""
    try:
        read_image(path, decoding)
    except UnreadableImageError as error:
        return error.reason
    return ""


def find_unreadable(
    paths: Iterable[str],
    decoding: Decoding = Decoding(),  # noqa: B008  it is frozen
    name: str = "images",
) -> dict[str, str]:
    """Return the reason for each image file that cannot be read, by path; ``name`` is shown in the progress bar."""
    paths = list(dict.fromkeys(paths))
    options = {"tqdm_class": tqdm, "disable": None, "leave": False, "desc": f"reading {name}", "unit": "image"}
    reasons = thread_map(partial(_read_error, decoding=decoding), paths, max_workers=os.cpu_count(), **options)
    return {path: reason for path, reason in zip(paths, reasons, strict=True) if reason}


def unreadable_images_error(reasons: Mapping[str, str], name: str) -> UserError:
    """Return the error that lists images that cannot be read.

    Args:
        reasons: reason of each image, by path.
        name: number and name of all images that were read, such as "160 train_x images".
    """
    lines = "".join(f"\n  {path}: {reason}" for path, reason in reasons.items())
    return UserError(
        f"{len(reasons):,} of {name} cannot be read:{lines}\nReplace the files, or leave them out with "
        "DATASET.SKIP_BAD_IMAGES True; tools/check_images.py looks through a whole data set"
    )


def skip_unreadable(dataset: DatasetBase, decoding: Decoding) -> dict[str, list[str]]:
    """Remove and print unreadable images of a data set's splits; return their sorted paths by split, if it had any."""
    removed = {}
    for split in SPLITS if dataset.has_images else ():
        if items := getattr(dataset, split, None):
            reasons = find_unreadable((item.impath for item in items), decoding, f"{split} images")
            for path, reason in reasons.items():
                print(f"Left out of {split} (DATASET.SKIP_BAD_IMAGES): {path}: {reason}")
            if reasons:
                print(f"{len(reasons):,} of {len(items):,} {split} images left out")
                setattr(dataset, f"_{split}", [item for item in items if item.impath not in reasons])
                removed[split] = sorted(reasons)
    return removed
