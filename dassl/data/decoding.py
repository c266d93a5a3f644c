"""How the images of a data set become RGB: the settings, the images that they change, and a note on 16-bit images."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache

from yacs.config import CfgNode

from dassl.utils.images import ORIGINAL_WHITE_LEVEL, Decoding, ImageHeader, ImageValues, read_header, read_values

from .datasets import DATASET_REGISTRY

ORIGINAL = Decoding(ORIGINAL_WHITE_LEVEL, "stored")  # the original CoOp's, and that of runs before the keys of INPUT
MAX_HEADERS = 200_000  # images of a split whose headers are read: 8 seconds on a local disk
MAX_VALUES = 32  # images whose values the note on 16-bit images gives: a second's work
MAX_GUESSES = 300  # of images whose white depends on their values: some seconds, of 1 megapixel
DARK_FACTOR = 4  # an image is dark if nearly no value exceeds a quarter of white, as in scans of 12 or 14 bits
NUM_THREADS = min(8, os.cpu_count() or 1)  # each holds the values of one image


def get_decoding(cfg: CfgNode) -> Decoding:
    """Return how ``cfg`` has images decoded; an unset key has the value of the data set's class."""
    orientation = cfg.INPUT.ORIENTATION
    if not orientation:
        is_known = cfg.DATASET.NAME in DATASET_REGISTRY.registered_names()
        dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME) if is_known else None
        orientation = getattr(dataset, "orientation", ORIGINAL.orientation)
    return Decoding(max(cfg.INPUT.WHITE_LEVEL, 0), orientation)


def read_cached_header(path: str, orientation: str) -> ImageHeader:
    """Return the result of ``dassl.utils.images.read_header``; read again only after a change of the file."""
    with suppress(OSError, ValueError):
        stat = os.stat(path)
        return _read_header(path, orientation, stat.st_mtime_ns, stat.st_size)
    return ImageHeader(False, False)


@lru_cache(maxsize=1 << 20)  # files; bounds the memory with very large data sets
def _read_header(path: str, orientation: str, time: int, size: int) -> ImageHeader:
    """Return the header of a file last changed at ``time`` with ``size`` bytes."""
    return read_header(path, orientation)


def describe_changes(path: str, decoding: Decoding) -> str:
    """Return a text, for keys of features, on how ``decoding`` changes an image from the original's; "" if it does not.

    So the features that earlier versions stored of all other images are still valid.
    """
    if decoding == ORIGINAL:
        return ""
    header = read_cached_header(path, decoding.orientation)
    is_scaled = header.is_deep and decoding.white_level != ORIGINAL_WHITE_LEVEL
    is_turned = header.is_turned and decoding.orientation == "exif"
    return (f" white level {decoding.white_level}" if is_scaled else "") + (" upright" if is_turned else "")


def count_changes(paths: Sequence[str], decoding: Decoding) -> dict[str, int]:
    """Return how ``decoding`` changes images from the original's: ``scaled`` and ``turned``, numbers of images.

    ``scaled`` comes with ``white_level``. A number of 0 is left out; so the result is {} for images as in the original.
    Of more than MAX_HEADERS images, the numbers are -1: unknown; but what is named as a JPEG is then taken for one.
    """
    if decoding == ORIGINAL:
        return {}
    if len(paths) > MAX_HEADERS and decoding.orientation == "stored":
        paths = [path for path in paths if not path.lower().endswith((".jpg", ".jpeg"))]
    scaled = turned = -1
    if len(paths) <= MAX_HEADERS:
        headers = [read_cached_header(path, decoding.orientation) for path in paths]
        scaled, turned = sum(header.is_deep for header in headers), sum(header.is_turned for header in headers)
    changes = {"turned": turned} if turned and decoding.orientation == "exif" else {}
    if scaled and decoding.white_level != ORIGINAL_WHITE_LEVEL:
        changes |= {"scaled": scaled, "white_level": decoding.white_level}
    return changes


def format_decoding(changes: dict[str, int]) -> str:
    """Return the result of ``count_changes`` as a text that names the keys and their values."""
    values = {"scaled": f"INPUT.WHITE_LEVEL {changes.get('white_level')}", "turned": "INPUT.ORIENTATION exif"}
    counts = {name: "?" if changes[name] < 0 else f"{changes[name]:,}" for name in values if name in changes}
    parts = [f"{values[name]} ({count} images {name})" for name, count in counts.items()]
    return ", ".join(parts) or "as in the original (INPUT.WHITE_LEVEL 255, INPUT.ORIENTATION stored)"


def describe_deep_images(paths: Sequence[str], decoding: Decoding, option: str = "INPUT.WHITE_LEVEL") -> str:
    """Return a note, a line or two, on the images of more than 8 bits a channel among ``paths``; "" without any.

    It gives the values in some of them, what is white, and, if images stay dark, the ``option`` that helps. Colour is
    in it only if it stays dark. Of more than MAX_HEADERS paths, as many are looked at.
    """
    headers = {path: read_cached_header(path, decoding.orientation) for path in _sample(paths, MAX_HEADERS)}
    deep = [path for path, header in headers.items() if header.is_deep]
    guessed = {path for path in deep if not headers[path].is_white_known and not decoding.white_level}
    sample = _sample([path for path in deep if path not in guessed], MAX_VALUES)
    values = _read_values(sample + _sample(sorted(guessed), MAX_GUESSES), decoding)
    notes = [_describe_values(len(deep), values, option)] if values else []
    colours = [path for path, header in headers.items() if header.is_deep_colour]
    if advice := _describe_dark([*_read_values(_sample(colours, MAX_VALUES), decoding).values()]):
        note = f"Note: images of 16 bits a channel, in colour or with alpha: {len(colours):,}{advice}"
        notes.append(f"{note}; {option} does not apply to them")
    return "\n".join(notes)


def _describe_values(count: int, values: dict[str, ImageValues], option: str) -> str:
    """Return the note on ``count`` grey images of more than 8 bits; ``values`` are those of some, by path."""
    images = [*values.values()]
    lowest, highest = min(image.lowest for image in images), max(image.highest for image in images)
    whites = Counter(image.white for image in images).most_common()
    note = f"Note: images of more than 8 bits a channel: {count:,}; in {len(images)} of them, values go from "
    note += f"{_format(lowest)} to {_format(highest)}. {' or '.join(f'{white:,}' for white, _ in whites)} becomes white"
    note += ", and so does all above it" if any(image.highest > image.white for image in images) else ""
    note += "; black, where a TIFF's 0 is white" if any(image.is_inverted for image in images) else ""
    note += f"{'; negative values become black' if lowest < 0 else ''} ({option})"
    if len(whites) > 1:
        rare = next(path for path, image in values.items() if image.white == whites[-1][0])
        shares = ", ".join(f"{white:,} in {number:,}" for white, number in whites)
        note += f". White is {shares} (such as {rare}); {option} gives all the same"
    return note + _describe_dark([image for image in images if image.nearly_highest > 0], option)


def _describe_dark(images: Sequence[ImageValues], option: str = "") -> str:
    """Return a sentence on those of the ``images`` that stay dark, with the value of ``option`` that helps, if any."""
    dark = [image for image in images if image.nearly_highest * DARK_FACTOR < image.white]
    if not dark:
        return ""
    limit = max(image.nearly_highest for image in dark)
    tones = " or ".join(sorted({"pale" if image.is_inverted else "dark" for image in dark}))
    white = 2 ** math.ceil(limit).bit_length() - 1
    helps = option and white < min(image.white for image in dark)
    advice = f"if {white:,} is white, set {option} {white}" if helps else "scale the values in the files"
    advice += ", which clips the others" if helps and len(dark) < len(images) else ""
    values = f"nearly all values are at most {_format(limit)}"
    return f". In {len(dark)} of {len(images)}, {values}, so they stay {tones}: {advice}"


def _sample(paths: Sequence[str], count: int) -> list[str]:
    """Return at most ``count`` of ``paths``, evenly spaced."""
    return [*paths[:: -(-len(paths) // count) or 1]]


def _read_values(paths: Sequence[str], decoding: Decoding) -> dict[str, ImageValues]:
    """Return the values in each of ``paths`` that can be read; the reader of the image reports the others."""

    def read(path: str) -> ImageValues | None:
        """Return the values in an image; None if it cannot be read."""
        with suppress(Exception):
            return read_values(path, decoding.white_level)
        return None

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return {path: values for path, values in zip(paths, pool.map(read, paths), strict=True) if values}


def _format(value: float) -> str:
    """Return a value of an image as a text: a whole number with commas, or four digits."""
    return f"{int(value):,}" if value == int(value) else f"{value:.4g}"
