"""Where in an image texts are to be seen: CLIPSeg.

    python predict.py segment IMAGE… --text "a cat" "a remote" [--out FOLDER] [--threshold 0.5]

For each image the folder gets <name>.overlay.png, the picture with what was found in colours, and <name>.masks.npz:
``masks``, the probabilities (texts, height, width) of its pixels in half precision, and ``texts``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dassl.utils import UserError, atomic_write, read_image

from .images import check_words, find_images, read_each
from .neighbours import add_model_argument, check_texts, in_parts, load, table
from .output import write_result
from .sheet import FONTS

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

MODEL = "CIDAS/clipseg-rd64-refined"
KINDS = {"clipseg": ("CLIPSegForImageSegmentation", "CLIPSegProcessor")}
COLOURS = (
    (230, 57, 70),
    (46, 134, 222),
    (46, 174, 96),
    (244, 162, 33),
    (142, 68, 173),
    (22, 188, 188),
    (236, 112, 176),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--text", nargs="+", required=True, metavar="TEXT", help='what to look for: "a cat" "a remote"')
    add("--out", default="output/segment", metavar="FOLDER", help="where the files go (output/segment)")
    add("--threshold", type=float, default=0.5, metavar="P", help="probability from which on a pixel counts (0.5)")
    add_model_argument(parser, MODEL)


def run(args: argparse.Namespace, name: str) -> None:
    check_words(args.text, "--text", args.images)
    if not 0 < args.threshold < 1:
        raise UserError(f"--threshold is {args.threshold}; it must be between 0 and 1")
    paths = find_images(args.images)
    files = _files(paths, Path(args.out))
    model, processor = load(args.model, KINDS, name)
    check_texts(args.text, "--text", processor, model.config.text_config.max_position_embeddings)
    for path, picture in read_each(paths, read_image):
        masks = probabilities(model, processor, picture, args.text)
        overlay, arrays = files[path]
        _write_arrays(arrays, masks, args.text)
        with atomic_write(overlay, "wb") as file:
            draw(picture, masks, args.text, args.threshold).save(file, format="PNG")
        found = [
            {"text": text, "area": float((mask >= args.threshold).mean()), "highest": float(mask.max())}
            for text, mask in zip(args.text, masks, strict=True)
        ]
        record = {"image": path, "segments": found, "overlay": str(overlay), "masks": str(arrays)}
        rows = [(entry["text"], f"{entry['area']:.2%}", f"{entry['highest']:.2%}") for entry in found]
        text = table(rows, ("text", "area", "highest probability"), path, alone=False)
        write_result(record, f"{text}{overlay}\n{arrays}\n", args.json)


def _files(paths: Sequence[str], folder: Path) -> dict[str, tuple[Path, Path]]:
    """The two files of each image. Images of one name in several folders get numbers: cat, cat-2, …

    Raises:
        UserError: one of the images would be overwritten.
    """
    files, taken = {}, set()
    for path in dict.fromkeys(paths):
        stem, number = Path(path).stem, 1
        while (name := stem if number == 1 else f"{stem}-{number}").lower() in taken:  # some systems fold the case
            number += 1
        taken.add(name.lower())
        files[path] = folder / f"{name}.overlay.png", folder / f"{name}.masks.npz"
    images = {Path(path).resolve() for path in paths}
    for overlay, _ in files.values():
        if overlay.resolve() in images:
            raise UserError(f"{overlay} is one of the images and would be overwritten: name another folder with --out")
    return files


def probabilities(model, processor, picture: Image.Image, texts: Sequence[str]) -> np.ndarray:
    """Of each pixel of the picture to show what each text says: (texts, height, width)."""
    import numpy as np
    import torch
    from torch.nn import functional as F

    pixels = processor(images=picture, return_tensors="pt").pixel_values.to(model.device)
    masks = []
    with torch.no_grad():
        for part in in_parts(texts):
            tokens = processor(text=list(part), padding=True, return_tensors="pt").to(model.device)
            logits = model(pixel_values=pixels.expand(len(part), -1, -1, -1), **tokens).logits
            logits = logits.reshape(len(part), 1, *logits.shape[-2:])  # of one text the library drops the first axis
            size = picture.height, picture.width
            masks.append(F.interpolate(logits, size, mode="bilinear").sigmoid()[:, 0].cpu().numpy())
    return np.concatenate(masks)


def _write_arrays(path: Path, masks: np.ndarray, texts: Sequence[str]) -> None:
    import numpy as np

    with atomic_write(path, "wb") as file:
        np.savez_compressed(file, masks=masks.astype(np.float16), texts=np.array(texts))


def draw(picture: Image.Image, masks: np.ndarray, texts: Sequence[str], threshold: float) -> Image.Image:
    """The picture in which the pixels from the threshold on have their text's colour, above a line for each text."""
    import numpy as np
    from PIL import Image, ImageDraw

    pixels = np.asarray(picture, dtype=np.float32).copy()
    for mask, colour in zip(masks, _colours(len(texts)), strict=True):
        seen = mask >= threshold
        pixels[seen] = (pixels[seen] + colour) / 2
    font = _font(size := min(32, max(12, picture.height // 24)))
    line = size * 3 // 2
    width = max(picture.width, line + max(int(font.getlength(text)) for text in texts) + size // 2)
    sheet = Image.new("RGB", (width, picture.height + line * len(texts)), "white")
    sheet.paste(Image.fromarray(pixels.astype(np.uint8)))
    pen = ImageDraw.Draw(sheet)
    for number, (text, colour) in enumerate(zip(texts, _colours(len(texts)), strict=True)):
        top = picture.height + number * line + size // 4
        pen.rectangle((size // 4, top, size, top + size * 3 // 4), fill=colour)
        pen.text((line, top - size // 8), text, fill="black", font=font)
    return sheet


def _colours(count: int) -> list[tuple[int, int, int]]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _font(size: int):
    """The font of picture sheets, in which texts may be Chinese."""
    from matplotlib import font_manager
    from PIL import ImageFont

    wanted = font_manager.FontProperties(family=[*FONTS, "DejaVu Sans"])
    return ImageFont.truetype(font_manager.findfont(wanted), size)
