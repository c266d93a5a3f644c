"""Pictures of digits with captions, drawn with the fonts that ship with matplotlib.

The pretraining data of the tiny CLIP. Nothing here reads a data set: scikit-learn's scans are never seen.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .captions import Appearance, draw_caption

SIZE = 32  # pixels; the input resolution of the tiny CLIP
CANVAS = 48  # pixels; glyphs are drawn and warped here, then brought down to SIZE
# The text fonts among matplotlib's; its symbol fonts have no digits.
FONT_FILES = (
    [f"DejaVuSans{s}.ttf" for s in ("", "-Bold", "-Oblique", "-BoldOblique")]
    + [f"DejaVuSansMono{s}.ttf" for s in ("", "-Bold", "-Oblique", "-BoldOblique")]
    + [f"DejaVuSerif{s}.ttf" for s in ("", "-Bold", "-Italic", "-BoldItalic")]
    + [f"STIXGeneral{s}.ttf" for s in ("", "Bol", "Italic", "BolIta")]
    + ["cmb10.ttf", "cmr10.ttf", "cmss10.ttf", "cmti10.ttf", "cmtt10.ttf"]
)


@cache
def _font(name: str) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), 40)


def draw_glyph(digit: int, font: str, stroke: int) -> np.ndarray:
    """White digit on black, cut to its outline, as floats in [0, 1] of shape (height, width)."""
    box = _font(font).getbbox(str(digit), stroke_width=stroke)
    glyph = Image.new("L", (box[2] - box[0], box[3] - box[1]))
    ImageDraw.Draw(glyph).text((-box[0], -box[1]), str(digit), 255, _font(font), stroke_width=stroke)
    return np.asarray(glyph.crop(glyph.getbbox()), dtype=np.float32) / 255


def warp(glyph: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Place the glyph on the canvas under a random affine map and a smooth random displacement.

    Returns floats in [0, 1] of shape (CANVAS, CANVAS).
    """
    from scipy.ndimage import gaussian_filter, map_coordinates  # a second to import

    height, width = glyph.shape
    y, x = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32) / (CANVAS - 1) * 2 - 1  # canvas in [-1, 1]
    bend = gaussian_filter(rng.normal(size=(2, CANVAS, CANVAS)), (0, 7, 7))
    bend *= rng.uniform(0, 0.16) / max(bend.std(), 1e-6)
    angle, shear = rng.normal(0, 0.14), rng.normal(0, 0.22)
    # How much of the canvas the glyph fills: its height nearly always, its width as the digit is written.
    fill_y = rng.uniform(0.72, 1.02)
    fill_x = fill_y * min(1.25, width / height * rng.uniform(0.6, 1.2))
    y, x = y - rng.normal(0, 0.06) + bend[0], x - rng.normal(0, 0.06) + bend[1]
    y, x = np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x
    x = x + shear * y
    rows, columns = (y / fill_y + 1) / 2 * (height - 1), (x / fill_x + 1) / 2 * (width - 1)
    return np.clip(map_coordinates(glyph, [rows, columns], order=1), 0, 1)


def render_digit(digit: int, rng: np.random.Generator) -> tuple[np.ndarray, Appearance]:
    """One random picture of ``digit``, uint8 of shape (SIZE, SIZE), and what it looks like."""
    stroke = int(rng.choice([0, 1, 2], p=[0.6, 0.3, 0.1]))
    picture = warp(draw_glyph(digit, str(rng.choice(FONT_FILES)), stroke), rng)
    blur = rng.choice([0, rng.uniform(0.3, 1.2), rng.uniform(1.2, 2.0)])
    image = Image.fromarray(np.uint8(picture * 255)).filter(ImageFilter.GaussianBlur(float(blur)))
    pixels = int(rng.choice([8, rng.integers(8, 17), SIZE], p=[0.45, 0.25, 0.3]))
    image = image.resize((pixels, pixels), Image.Resampling.BOX)
    image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    values = np.clip(np.asarray(image, dtype=np.float32) / 255 * rng.uniform(1.0, 1.6), 0, 1)
    ink, paper = (1.0, rng.uniform(0, 0.15)) if rng.random() < 0.7 else (rng.uniform(0, 0.15), 1.0)
    values = paper + (ink - paper) * values * rng.uniform(0.7, 1.0)
    values += rng.normal(0, rng.uniform(0, 0.06), values.shape)
    colour, coarse = "black" if paper < 0.5 else "white", 12 <= pixels < SIZE
    looks = Appearance(blurry=blur > 1.2, pixelated=pixels < 12, coarse=coarse, bold=stroke == 2, paper=colour)
    return np.uint8(np.clip(values, 0, 1) * 255), looks


def render_dataset(size: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """``size`` renders, every digit equally often.

    Returns images (size, SIZE, SIZE) uint8 and their captions.
    """
    rng = np.random.default_rng(seed)
    images, captions = [], []
    for index in range(size):
        image, looks = render_digit(index % 10, rng)
        images.append(image)
        captions.append(draw_caption(index % 10, looks, rng))
    return np.stack(images), captions
