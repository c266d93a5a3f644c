"""Write captioned images to try fine-tuning and retrieval on, without a download.

    python tools/digit_pairs.py --root ./data                     # two handwritten digits an image, five captions each
    python tools/digit_pairs.py --root ./data --renders 20000     # what the tiny CLIP was pretrained on

The digits are scikit-learn's scans; those of test images are in no training image (as in the data set Digits). The test
set has the pairs 00 to 99 once each. Each set goes to a folder of its own, with ``captions.json``.
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

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
SIZE = 32  # pixels of an image: the tiny CLIP's
DIGIT_SIZE, TOP = (16, 28), 2  # pixels of a digit in it, width and height; and above it
SPLITS = ("train", "test")  # of each digit's scans, every second one is for testing, as in datasets/digits.py

Record = tuple[Any, list[str], str]  # pixels, uint8 (SIZE, SIZE); captions; split


def spell_number(tens: int, ones: int) -> str:
    """How the number is read: "zero seven", "forty seven"."""
    if tens == 0:
        return f"zero {WORDS[ones]}"
    if tens == 1:
        return TEENS[ones]
    return f"{TENS[tens]} {WORDS[ones]}" if ones else TENS[tens]


def build_captions(left: int, right: int) -> list[str]:
    """What may be said of a picture of two digits; each sentence is true of no other pair."""
    a, b = WORDS[left], WORDS[right]
    return [
        f"the number {spell_number(left, right)}",
        f"a photo of the digits {a} and {b}.",
        f"a {a} to the left of a {b}",
        f"first a {a}, then a {b}, written by hand",
        f"{a} {b} on a black background",
    ]


def generate_pairs(count: int, seed: int) -> Iterator[Record]:
    """``count`` training images and 100 for testing."""
    import numpy as np
    from PIL import Image

    from datasets.digits import read_scans

    scans, digits = read_scans()
    halves = {split: [np.flatnonzero(digits == d)[start::2] for d in range(10)] for start, split in enumerate(SPLITS)}
    rng = np.random.default_rng(seed)
    for split, total in zip(SPLITS, (count, 100), strict=True):
        for index in range(total):
            left, right = divmod(index % 100, 10)
            two = [scans[rng.choice(halves[split][digit])] for digit in (left, right)]
            picture = np.zeros((SIZE, SIZE), np.uint8)
            for place, scan in enumerate(two):
                wide = Image.fromarray(scan).resize(DIGIT_SIZE, Image.Resampling.BICUBIC)
                picture[TOP : TOP + DIGIT_SIZE[1], place * DIGIT_SIZE[0] : (place + 1) * DIGIT_SIZE[0]] = wide
            yield picture, build_captions(left, right), split


def generate_renders(count: int, seed: int) -> Iterator[Record]:
    """The pretraining data of the tiny CLIP, a caption an image, and some more for testing."""
    for split, size, own_seed in (("train", count, seed), ("test", 500, seed + 1)):
        for pixels, caption in zip(*render_dataset(size, own_seed), strict=True):
            yield pixels, [caption], split


def write_dataset(folder: Path, records: Iterator[Record]) -> int:
    """Write the images and ``captions.json``, all of it or nothing; returns how many images."""
    from PIL import Image

    if folder.exists():
        raise UserError(f"{folder} is there already; remove it to write it anew")
    mkdir_if_missing(folder.parent)
    entries = []
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            whole = Path(temporary, folder.name)
            for index, (pixels, texts, split) in enumerate(records):
                name = f"images/{index // 1000:03}/{index:06}.png"
                (whole / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(whole / name)
                entries.append({"image": name, "caption": texts, "split": split})
            write_json(entries, whole / "captions.json")
            whole.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from error
    return len(entries)


@command_line()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the data sets (./data)")
    parser.add_argument("--pairs", type=int, default=4000, help="training images of two digits")
    parser.add_argument("--renders", type=int, default=0, help="write this many rendered single digits instead")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    check_at_least(args.pairs, 1, "--pairs")
    check_at_least(args.renders, 0, "--renders")
    make: Callable[[int, int], Iterator[Record]] = generate_renders if args.renders else generate_pairs
    folder = args.root.expanduser() / ("digit_renders" if args.renders else "digit_pairs")
    count = write_dataset(folder, make(args.renders or args.pairs, args.seed))
    print(f"{folder} written: {count:,} images with captions")


if __name__ == "__main__":
    sys.exit(main())
