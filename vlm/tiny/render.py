"""The pretraining data of the tiny CLIP: captioned images of digits, rendered with the fonts of matplotlib.

No data set is read: the tiny CLIP never sees scikit-learn's scanned digits.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .captions import Appearance, draw_caption

# Pixels: the input resolution of the tiny CLIP, enough for a digit, little enough for training on one core.
IMAGE_SIZE = 32
CANVAS = 48  # pixels: glyphs are warped at this resolution, finer than IMAGE_SIZE, to which they are then scaled down
# All fonts of matplotlib but its symbol fonts, which have no digits.
FONT_FILES = (
    [f"DejaVuSans{s}.ttf" for s in ("", "-Bold", "-Oblique", "-BoldOblique")]
    + [f"DejaVuSansMono{s}.ttf" for s in ("", "-Bold", "-Oblique", "-BoldOblique")]
    + [f"DejaVuSerif{s}.ttf" for s in ("", "-Bold", "-Italic", "-BoldItalic")]
    + [f"STIXGeneral{s}.ttf" for s in ("", "Bol", "Italic", "BolIta")]
    + ["cmb10.ttf", "cmr10.ttf", "cmss10.ttf", "cmti10.ttf", "cmtt10.ttf"]
)


@cache
def _load_font(name: str) -> ImageFont.FreeTypeFont:
    """Return a font of matplotlib, given its file name, at 40 pixels."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), 40)


def draw_glyph(digit: int, font: str, stroke: int) -> np.ndarray:
    """Return a white digit on black, cropped to its bounding box: floats in [0, 1] of shape (height, width).

    ``font``: one of FONT_FILES. ``stroke``: width of the outline, in pixels.
    """
    left, top, right, bottom = map(int, _load_font(font).getbbox(str(digit), stroke_width=stroke))
    glyph = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(glyph).text((-left, -top), str(digit), 255, _load_font(font), stroke_width=stroke)
    return np.asarray(glyph.crop(glyph.getbbox()), dtype=np.float32) / 255


def warp(glyph: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the glyph on the canvas after a random affine map and a smooth random displacement.

    Glyph and canvas are floats in [0, 1]; the canvas has the shape (CANVAS, CANVAS).
    """
    from scipy.ndimage import gaussian_filter, map_coordinates  # imported here as it takes a second

    height, width = glyph.shape
    y, x = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32) / (CANVAS - 1) * 2 - 1  # canvas in [-1, 1]
    bend = gaussian_filter(rng.normal(size=(2, CANVAS, CANVAS)), (0, 7, 7))
    bend *= rng.uniform(0, 0.16) / max(bend.std(), 1e-6)
    angle, shear = rng.normal(0, 0.14), rng.normal(0, 0.22)
    # Fractions of the canvas that the glyph fills: nearly all of the height, and of the width in proportion.
    fill_y = rng.uniform(0.72, 1.02)
    fill_x = fill_y * min(1.25, width / height * rng.uniform(0.6, 1.2))
    y, x = y - rng.normal(0, 0.06) + bend[0], x - rng.normal(0, 0.06) + bend[1]
    y, x = np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x
    x = x + shear * y
    rows, columns = (y / fill_y + 1) / 2 * (height - 1), (x / fill_x + 1) / 2 * (width - 1)
    return np.clip(map_coordinates(glyph, [rows, columns], order=1), 0, 1)


def render_digit(digit: int, rng: np.random.Generator) -> tuple[np.ndarray, Appearance]:
    """Return a random image of ``digit``, uint8 (IMAGE_SIZE, IMAGE_SIZE), and its appearance for the caption."""
    stroke = int(rng.choice([0, 1, 2], p=[0.6, 0.3, 0.1]))
    canvas = warp(draw_glyph(digit, str(rng.choice(FONT_FILES)), stroke), rng)
    blur = rng.choice([0, rng.uniform(0.3, 1.2), rng.uniform(1.2, 2.0)])
    image = Image.fromarray(np.uint8(canvas * 255)).filter(ImageFilter.GaussianBlur(float(blur)))
    pixels = int(rng.choice([8, int(rng.integers(8, 17)), IMAGE_SIZE], p=[0.45, 0.25, 0.3]))
    image = image.resize((pixels, pixels), Image.Resampling.BOX)
    image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    values = np.clip(np.asarray(image, dtype=np.float32) / 255 * rng.uniform(1.0, 1.6), 0, 1)
    ink, paper = (1.0, rng.uniform(0, 0.15)) if rng.random() < 0.7 else (rng.uniform(0, 0.15), 1.0)
    values = paper + (ink - paper) * values * rng.uniform(0.7, 1.0)
    values += rng.normal(0, rng.uniform(0, 0.06), values.shape)
    colour, coarse = "black" if paper < 0.5 else "white", 12 <= pixels < IMAGE_SIZE
    appearance = Appearance(blurry=blur > 1.2, pixelated=pixels < 12, coarse=coarse, bold=stroke == 2, paper=colour)
    return np.uint8(np.clip(values, 0, 1) * 255), appearance


def render_dataset(size: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Return images of the digits 0 to 9 in turn, uint8 (size, IMAGE_SIZE, IMAGE_SIZE), and their captions."""
    rng = np.random.default_rng(seed)
    images, captions = [], []
    for index in range(size):
        image, appearance = render_digit(index % 10, rng)
        images.append(image)
        captions.append(draw_caption(index % 10, appearance, rng))
    return np.stack(images), captions
