"""Write captioned images for trying out fine-tuning and retrieval without a download.

    python tools/digit_pairs.py --root ./data                     # two handwritten digits an image, five captions each
    python tools/digit_pairs.py --root ./data --renders 20000     # the tiny CLIP's pretraining data

The digits are scikit-learn's scans; training and test images share no scan (as in the data set Digits). The test images
show the pairs 00 to 99 once each. The images and ``captions.json`` go to ROOT/digit_pairs or ROOT/digit_renders.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.utils import UserError, check_at_least, command_line, mkdir_if_missing, write_json
from vlm.tiny.render import render_dataset

# English words for the numbers 0 to 9, 10 to 19, and the tens
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
IMAGE_PIXELS = 32  # pixels of an image's edge: the input size of the tiny CLIP
DIGIT_SIZE, TOP = (16, 28), 2  # width and height of a digit, margin above it, in pixels: two digits fill the image
DIGIT_SPLITS = ("train", "test")  # the scans of each digit go to these in turn, as in datasets/digits.py

Sample = tuple[Any, list[str], str]  # pixels, uint8 (SIZE, SIZE); captions; split


def spell_number(tens: int, ones: int) -> str:
    """Return a two-digit number in English words: "zero seven", "forty seven"."""
    if tens == 0:
        return f"zero {DIGIT_WORDS[ones]}"
    if tens == 1:
        return TEENS[ones]
    return f"{TENS[tens]} {DIGIT_WORDS[ones]}" if ones else TENS[tens]


def build_captions(left: int, right: int) -> list[str]:
    """Return five captions for an image of the digits ``left`` and ``right``; none of them fits another pair."""
    a, b = DIGIT_WORDS[left], DIGIT_WORDS[right]
    return [
        f"the number {spell_number(left, right)}",
        f"a photo of the digits {a} and {b}.",
        f"a {a} to the left of a {b}",
        f"first a {a}, then a {b}, written by hand",
        f"{a} {b} on a black background",
    ]


def generate_pairs(count: int, seed: int) -> Iterator[Sample]:
    """Yield ``count`` training and 100 test samples (pixels, captions, split) of two digit scans, drawn by ``seed``."""
    import numpy as np
    from PIL import Image

    from datasets.digits import read_scans

    scans, digits = read_scans()
    indices = {
        split: [np.flatnonzero(digits == d)[start::2] for d in range(10)] for start, split in enumerate(DIGIT_SPLITS)
    }
    rng = np.random.default_rng(seed)
    for split, total in zip(DIGIT_SPLITS, (count, 100), strict=True):
        for index in range(total):
            left, right = divmod(index % 100, 10)
            pair = [scans[rng.choice(indices[split][digit])] for digit in (left, right)]
            pixels = np.zeros((IMAGE_PIXELS, IMAGE_PIXELS), np.uint8)
            for position, scan in enumerate(pair):
                resized = Image.fromarray(scan).resize(DIGIT_SIZE, Image.Resampling.BICUBIC)
                start = position * DIGIT_SIZE[0]
                pixels[TOP : TOP + DIGIT_SIZE[1], start : start + DIGIT_SIZE[0]] = resized
            yield pixels, build_captions(left, right), split


def generate_renders(count: int, seed: int) -> Iterator[Sample]:
    """Yield ``count`` training and 500 test samples like the tiny CLIP's pretraining data, one caption each."""
    for split, total, split_seed in (("train", count, seed), ("test", 500, seed + 1)):
        for pixels, caption in zip(*render_dataset(total, split_seed), strict=True):
            yield pixels, [caption], split


def write_dataset(folder: Path, samples: Iterator[Sample]) -> int:
    """Write images and ``captions.json`` to ``folder``, all or nothing; return the number of images.

    Raise ``UserError`` if ``folder`` exists or cannot be written.
    """
    from PIL import Image

    if folder.exists():
        raise UserError(f"{folder} is there already; remove it to write it anew")
    mkdir_if_missing(folder.parent)
    entries = []
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            temporary_folder = Path(temporary, folder.name)
            for index, (pixels, captions, split) in enumerate(samples):
                name = f"images/{index // 1000:03}/{index:06}.png"
                (temporary_folder / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(temporary_folder / name)
                entries.append({"image": name, "caption": captions, "split": split})
            write_json(entries, temporary_folder / "captions.json")
            temporary_folder.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from error
    return len(entries)


@command_line()
def main(argv: list[str] | None = None) -> None:
    """Write a data set of digit pairs, or of rendered digits (``--renders``), to a new folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the data sets (./data)")
    parser.add_argument("--pairs", type=int, default=4000, help="training images of two digits (4000)")
    parser.add_argument("--renders", type=int, default=0, help="write this many rendered single digits, no pairs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random choices (0)")
    args = parser.parse_args(argv)
    check_at_least(args.pairs, 1, "--pairs")
    check_at_least(args.renders, 0, "--renders")
    generate: Callable[[int, int], Iterator[Sample]] = generate_renders if args.renders else generate_pairs
    folder = args.root.expanduser() / ("digit_renders" if args.renders else "digit_pairs")
    count = write_dataset(folder, generate(args.renders or args.pairs, args.seed))
    print(f"{folder} written: {count:,} images with captions")


if __name__ == "__main__":
    sys.exit(main())
