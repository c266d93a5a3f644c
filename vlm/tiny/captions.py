"""Captions for rendered digits: true sentences about the image, in many wordings and lengths.

The digit's word appears at many positions among many other words, so the text encoder learns to find it in any context,
also in one that CoOp learns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from vlm.text.templates import IMAGENET_TEMPLATES

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PHRASES: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_name("phrases.yaml").read_text(encoding="utf-8"))


@dataclass
class Appearance:
    """The properties of an image, beside its digit, that a caption may mention."""

    blurry: bool
    pixelated: bool
    coarse: bool  # of low resolution, but without visibly square pixels
    bold: bool
    paper: str  # colour of the background: black or white

    def words(self) -> list[str]:
        """Return "" (no adjective), and those of blurry, pixelated, low resolution, bold that are true of the image."""
        flags = {"blurry": self.blurry, "pixelated": self.pixelated, "low resolution": self.coarse, "bold": self.bold}
        return ["", *(word for word, is_true in flags.items() if is_true)]


def draw_caption(digit: int, appearance: Appearance, rng: np.random.Generator) -> str:
    """Return a random caption for an image of ``digit``: a template of CLIP, or a sentence of this module's phrases."""
    if rng.random() < 0.3:
        name = str(rng.choice(("{}", "{}", "number {}", "digit {}"))).format(WORDS[digit])
        return str(rng.choice(IMAGENET_TEMPLATES)).replace("{}", name)
    phrases = [
        str(rng.choice(PHRASES["openings"])) if rng.random() < 0.35 else "",
        "a",
        str(rng.choice(appearance.words())),
        str(rng.choice(PHRASES["kinds"])),
        "of",
        str(rng.choice(PHRASES["subjects"])).format(WORDS[digit]),
        f"on a {appearance.paper} background" if rng.random() < 0.3 else "",
        str(rng.choice(PHRASES["closings"])) if rng.random() < 0.3 else "",
    ]
    return " ".join(phrase for phrase in phrases if phrase) + "."
