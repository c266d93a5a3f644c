"""Pictures that cannot be read: where they are found, and what is said about them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from dassl.utils import UnreadableImageError, UserError, read_image

from .datasets import DatasetBase
from .datasets.fingerprint import SPLITS


def _read_error(path: str) -> str:
    """Return why a picture cannot be read; an empty string if it can."""
    try:
        read_image(path)
    except UnreadableImageError as error:
        return error.reason
    return ""


def find_unreadable(paths: Iterable[str], name: str = "images") -> dict[str, str]:
    """Read pictures; return those that cannot be read, with the reasons, in the order of ``paths``.

    Args:
        name: of the pictures, for the progress bar.
    """
    paths = list(dict.fromkeys(paths))
    bar = {"tqdm_class": tqdm, "disable": None, "leave": False, "desc": f"reading {name}", "unit": "image"}
    reasons = thread_map(_read_error, paths, max_workers=os.cpu_count(), **bar)
    return {path: reason for path, reason in zip(paths, reasons, strict=True) if reason}


def unreadable_images_error(bad: Mapping[str, str], name: str) -> UserError:
    """Return the error that lists pictures with the reasons.

    Args:
        bad: reasons by path.
        name: of the pictures among which they were found, such as "160 training images".
    """
    lines = "".join(f"\n  {path}: {reason}" for path, reason in bad.items())
    return UserError(
        f"{len(bad):,} of {name} cannot be read:{lines}\nReplace or remove the files, or leave them out with "
        "DATASET.SKIP_BAD_IMAGES True; tools/check_images.py looks through a whole data set"
    )


def skip_unreadable(dataset: DatasetBase) -> dict[str, list[str]]:
    """Take pictures that cannot be read out of a data set's splits (DATASET.SKIP_BAD_IMAGES).

    Returns:
        ``{split: paths}`` of what was taken out. The log names each file.
    """
    taken_out = {}
    for split in SPLITS:
        if items := getattr(dataset, split, None):
            bad = find_unreadable((item.impath for item in items), f"{split} images")
            for path, reason in bad.items():
                print(f"Left out of {split} (DATASET.SKIP_BAD_IMAGES): {path}: {reason}")
            if bad:
                print(f"{len(bad):,} of {len(items):,} {split} images left out")
                setattr(dataset, f"_{split}", [item for item in items if item.impath not in bad])
                taken_out[split] = sorted(bad)
    return taken_out
