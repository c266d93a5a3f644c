"""How the images of a data set become RGB: the settings, the images that they change, and a note on 16-bit images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache

from yacs.config import CfgNode

from dassl.utils.images import ORIGINAL_WHITE_LEVEL, Decoding, ImageHeader, read_header, read_values

from .datasets import DATASET_REGISTRY

ORIGINAL = Decoding(ORIGINAL_WHITE_LEVEL, "stored")  # the original CoOp's, and that of runs before the keys of INPUT
MAX_HEADERS = 200_000  # images of a split whose headers are read: 8 seconds on a local disk
MAX_VALUES = 32  # images whose values the note on 16-bit images gives: a second's work
DARK_FACTOR = 4  # the note advises if no value exceeds a quarter of white, as in scans of 12 or 14 bits


def get_decoding(cfg: CfgNode) -> Decoding:
    """Return how ``cfg`` has images decoded; an unset key has the value of the data set's class."""
    orientation = cfg.INPUT.ORIENTATION
    if not orientation:
        is_known = cfg.DATASET.NAME in DATASET_REGISTRY.registered_names()
        dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME) if is_known else None
        orientation = getattr(dataset, "orientation", ORIGINAL.orientation)
    return Decoding(max(cfg.INPUT.WHITE_LEVEL, 0), orientation)


def read_cached_header(path: str) -> ImageHeader:
    """Return the :class:`ImageHeader` of an image file, which is read again only after a change of the file."""
    with suppress(OSError, ValueError):
        stat = os.stat(path)
        return _read_header(path, stat.st_mtime_ns, stat.st_size)
    return ImageHeader(False, False)


@lru_cache(maxsize=1 << 20)  # files; bounds the memory with very large data sets
def _read_header(path: str, time: int, size: int) -> ImageHeader:
    """Return the header of a file last changed at ``time`` with ``size`` bytes."""
    return read_header(path)


def describe_changes(path: str, decoding: Decoding) -> str:
    """Return a text, for keys of features, on how ``decoding`` changes an image from the original's; "" if it does not.

    So the features that earlier versions stored of all other images are still valid.
    """
    if decoding == ORIGINAL:
        return ""
    header = read_cached_header(path)
    is_scaled = header.is_deep and decoding.white_level != ORIGINAL_WHITE_LEVEL
    is_turned = header.is_turned and decoding.orientation == "exif"
    return (f" white level {decoding.white_level}" if is_scaled else "") + (" upright" if is_turned else "")


def count_changes(paths: Sequence[str], decoding: Decoding) -> dict[str, int]:
    """Return how ``decoding`` changes images from the original's: ``scaled`` and ``turned``, numbers of images.

    ``scaled`` comes with ``white_level``. A number of 0 is left out; so the result is {} for images as in the original.
    Of more than MAX_HEADERS images, the numbers are -1: unknown. A JPEG is not looked at where nothing can change it.
    """
    if decoding.orientation == "stored":
        jpeg = (".jpg", ".jpeg")
        paths = [] if decoding == ORIGINAL else [path for path in paths if not path.lower().endswith(jpeg)]
    scaled = turned = -1
    if len(paths) <= MAX_HEADERS:
        headers = [read_cached_header(path) for path in paths]
        scaled, turned = sum(header.is_deep for header in headers), sum(header.is_turned for header in headers)
    changes = {"turned": turned} if turned and decoding.orientation == "exif" else {}
    if scaled and decoding.white_level != ORIGINAL_WHITE_LEVEL:
        changes |= {"scaled": scaled, "white_level": decoding.white_level}
    return changes


def format_decoding(changes: dict[str, int]) -> str:
    """Return the result of :func:`count_changes` as a text that names the keys and their values."""
    values = {"scaled": f"INPUT.WHITE_LEVEL {changes.get('white_level')}", "turned": "INPUT.ORIENTATION exif"}
    counts = {name: "?" if changes[name] < 0 else f"{changes[name]:,}" for name in values if name in changes}
    parts = [f"{values[name]} ({count} images {name})" for name, count in counts.items()]
    return ", ".join(parts) or "as in the original (INPUT.WHITE_LEVEL 255, INPUT.ORIENTATION stored)"


def describe_deep_images(paths: Sequence[str], decoding: Decoding, option: str = "INPUT.WHITE_LEVEL") -> str:
    """Return a note on the images of more than 8 bits a channel among ``paths``; "" without any.

    It gives the values in MAX_VALUES of them, what is white, and, if the images stay dark, the ``option`` that helps.
    Of more than MAX_HEADERS paths, as many are looked at.
    """
    paths = paths[:: -(-len(paths) // MAX_HEADERS) or 1]
    if decoding.orientation == "stored":
        paths = [path for path in paths if not path.lower().endswith((".jpg", ".jpeg"))]
    deep = [path for path in paths if read_cached_header(path).is_deep]
    ranges = []
    for path in deep[:: -(-len(deep) // MAX_VALUES) or 1]:
        with suppress(Exception):  # the reader of the image reports it
            ranges.append(read_values(path))
    if not ranges:
        return ""
    lowest, highest = min(low for low, _, _ in ranges), max(high for _, high, _ in ranges)
    whites = sorted({decoding.white_level or white for *_, white in ranges})
    white = whites[-1]
    note = f"Note: images of more than 8 bits a channel: {len(deep):,}; in {len(ranges)} of them, values go from "
    note += f"{_format(lowest)} to {_format(highest)}. {' or '.join(f'{w:,}' for w in whites)} becomes white"
    if highest > white:
        return f"{note}, and so does all above it ({option})"
    if highest * DARK_FACTOR >= white or highest <= 0:
        return f"{note} ({option})"
    bits = max(int(highest), 1).bit_length()
    return f"{note}, so they stay dark: if {2**bits - 1:,} ({bits} bits) is white, set {option} {2**bits - 1}"


def _format(value: float) -> str:
    """Return a value of an image as a text: a whole number with commas, or four digits."""
    return f"{int(value):,}" if value == int(value) else f"{value:.4g}"
