"""Captions for rendered digits: true sentences about the image, in many wordings and lengths.

The digit's word appears at many positions among many other words, so the text encoder learns to find it in any context,
also in one that CoOp learns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlm.text.templates import IMAGENET_TEMPLATES

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KINDS = ("photo", "picture", "drawing", "scan", "print", "image")
SUBJECTS = ("the number {}", "the number {}", "the digit {}", "a {}", "the {}", "a handwritten {}", "a single {}", "{}")
OPENINGS = (
    "this is",
    "here is",
    "we see",
    "look at",
    "in my old notebook there is",
    "found in a box of papers :",
    "my teacher showed us",
    "from a form that somebody filled in by hand ,",
    "yesterday i made",
    "what you can see here is",
)
CLOSINGS = (
    "written in a hurry",
    "on an envelope",
    "that a child wrote",
    "seen from very near",
    "for the exercise at school",
    "as it came out of the machine this morning",
    "with a little noise around it",
    "and nothing else on the page",
    "in black and white",
)


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
        str(rng.choice(OPENINGS)) if rng.random() < 0.35 else "",
        "a",
        str(rng.choice(appearance.words())),
        str(rng.choice(KINDS)),
        "of",
        str(rng.choice(SUBJECTS)).format(WORDS[digit]),
        f"on a {appearance.paper} background" if rng.random() < 0.3 else "",
        str(rng.choice(CLOSINGS)) if rng.random() < 0.3 else "",
    ]
    return " ".join(phrase for phrase in phrases if phrase) + "."
