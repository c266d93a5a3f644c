"""Check real weights against published numbers: the first thing to do on a machine with a network.

    python tools/selfcheck.py                   # OpenAI's ViT-B/32 (354 MB) on the image of OpenAI's README
    python tools/selfcheck.py --root ./data     # and RN50 (256 MB) on ImageNette, if it is in ./data

The image is classified as in the README of github.com/openai/CLIP, which prints the expected probabilities. On
ImageNette, zero-shot RN50 must be right on more than 95% of the test images. Exit codes: 0 all is right, 1 a check
failed, 2 the image or ViT-B/32 cannot be downloaded.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.utils import command_line, file_digest, read_image
from dassl.utils.images import is_system_name

REPOSITORY = Path(__file__).resolve().parents[1]
BACKBONE = "ViT-B/32"  # of OpenAI's README
IMAGE_URL = "https://raw.githubusercontent.com/openai/CLIP/main/CLIP.png"
IMAGE_SHA256 = "308a3ca4503f1c7a07803916c369d78c4ef501e5ab7fc727da9b5e1d2f9ec85b"  # of its 252,444 bytes
EXPECTED = {"a diagram": 0.9927937, "a dog": 0.00421068, "a cat": 0.00299572}  # OpenAI's README, "Label probs"
# Largest relative difference of a probability: 0.1 in a logit, 0.001 in a cosine. With the tiny CLIP, half precision
# moves a cosine by at most 0.0006, a bilinear resize or ImageNet's mean in place of CLIP's by 0.02 on average.
TOLERANCE = 0.1
MIN_ACCURACY = 95.0  # percent, of RN50 on ImageNette, whose ten classes are easy to tell apart
IMAGENETTE_CLASSES = 10  # folders of ImageNette; ImageNet, which may lie in the same folder, has 1,000


def check_probabilities() -> bool:
    """Print OpenAI's probabilities for the image and those computed here; return whether they agree.

    Raises:
        UserError: the weights or the image cannot be downloaded.
    """
    import torch
    from tabulate import tabulate

    from dassl.data.downloads import download
    from inference.classifier import build_zero_shot
    from vlm.clip.load import CACHE_DIR

    path = CACHE_DIR / "CLIP.png"
    if not path.is_file() or file_digest(path) != IMAGE_SHA256:
        download(IMAGE_URL, path, IMAGE_SHA256)
    classifier = build_zero_shot(list(EXPECTED), ["{}"], BACKBONE)
    logits = classifier.predict(classifier.preprocess(read_image(path))[None])
    probabilities = torch.softmax(logits[0], 0).tolist()
    rows = [(text, p, q, q / p - 1) for (text, p), q in zip(EXPECTED.items(), probabilities, strict=True)]
    print(tabulate(rows, [BACKBONE, "OpenAI", "here", "difference"], floatfmt=("", ".5f", ".5f", "+.1%")))
    if all(abs(difference) <= TOLERANCE for *_, difference in rows):
        print("The weights, the preprocessing and both encoders are right.")
        return True
    differences = ", ".join(f'"{text}" {q:.5f}, not {p:.5f} ({difference:+.1%})' for text, p, q, difference in rows)
    print(f"error: {BACKBONE} gives {differences}; at most {TOLERANCE:.0%} are rounding", file=sys.stderr)
    return False


def check_imagenette(root: Path) -> bool:
    """Run zero-shot RN50 on ImageNette, if ``root`` has it; return whether the accuracy is above MIN_ACCURACY."""
    import train
    from dassl.engine.record import read_record

    folder = root / "imagenet/images/val"
    entries = folder.iterdir() if folder.is_dir() else ()
    if sum(path.is_dir() and not is_system_name(path.name) for path in entries) != IMAGENETTE_CLASSES:
        hint = f"python tools/prepare_imagenette.py --root {root}, then this again, checks RN50 on it"
        print(f"ImageNette is not in {root / 'imagenet'}: {hint}")
        return True
    with tempfile.TemporaryDirectory() as output:
        configs = "--dataset-config-file", "datasets/imagenette.yaml", "--config-file", "trainers/CoOp/rn50.yaml"
        paths = [str(REPOSITORY / "configs" / word) if word.endswith(".yaml") else word for word in configs]
        arguments = ["--root", str(root), "--trainer", "ZeroshotCLIP", "--eval-only", "--output-dir", output, *paths]
        if train.main(arguments):  # it has printed why
            return False
        accuracy = read_record(Path(output))["accuracy"]
    if accuracy > MIN_ACCURACY:
        print(f"RN50 is right on {accuracy:.2f}% of ImageNette's test images: as it should be, above {MIN_ACCURACY}%.")
        return True
    print(f"error: RN50 is right on {accuracy:.2f}% of ImageNette, not above {MIN_ACCURACY}%", file=sys.stderr)
    return False


@command_line()
def main(argv: list[str] | None = None) -> int:
    """Make the checks that ``argv`` (None: the command line) describes; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("./data"), help="folder of the data sets (./data)")
    args = parser.parse_args(argv)
    results = [check_probabilities(), check_imagenette(args.root)]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
