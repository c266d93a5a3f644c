"""Where in an image texts are to be seen: CLIPSeg.

    python predict.py segment IMAGE… --text "a cat" "a remote" [--out FOLDER] [--threshold 0.5]

For each image the folder gets <name>.overlay.png, the picture with what was found in colours, and <name>.masks.npz:
``masks``, the probabilities (texts, height, width) of its pixels in half precision, and ``texts``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from dassl.utils import UserError, atomic_write

from .contact_sheet import CJK_FONTS
from .images import check_texts_are_not_images, find_images, read_each
from .output import write_result
from .transformers_models import add_model_argument, batch_texts, check_texts, format_table, load_model

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

DEFAULT_MODEL = "CIDAS/clipseg-rd64-refined"
MODEL_CLASSES = {"clipseg": "CLIPSegForImageSegmentation"}
COLOURS = ("#e63946", "#2e86de", "#2eae60", "#f4a221", "#8e44ad", "#16bcbc", "#ec70b0")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--text", nargs="+", required=True, metavar="TEXT", help='what to look for: "a cat" "a remote"')
    add("--out", default="output/segment", metavar="FOLDER", help="where the files go (output/segment)")
    add("--threshold", type=float, default=0.5, metavar="P", help="probability from which on a pixel counts (0.5)")
    add_model_argument(parser, DEFAULT_MODEL)


def run(args: argparse.Namespace, name: str) -> None:
    import numpy as np

    check_texts_are_not_images(args.text, "--text", args.images)
    if not 0 < args.threshold < 1:
        raise UserError(f"--threshold is {args.threshold}; it must be between 0 and 1")
    paths = find_images(args.images)
    files = _output_files(paths, Path(args.out))
    model, processor = load_model(args.model, MODEL_CLASSES, name)
    check_texts(args.text, "--text", model, processor)
    for path, picture in read_each(paths):
        masks = segment_texts(model, processor, picture, args.text)
        overlay, arrays = files[path]
        with atomic_write(arrays, "wb") as file:
            np.savez_compressed(file, masks=masks.astype(np.float16), texts=np.array(args.text))
        with atomic_write(overlay, "wb") as file:
            draw_overlay(picture, masks, args.text, args.threshold).save(file, format="PNG")
        found = [
            {"text": text, "area": float((mask >= args.threshold).mean()), "highest": float(mask.max())}
            for text, mask in zip(args.text, masks, strict=True)
        ]
        record = {"image": path, "segments": found, "overlay": str(overlay), "masks": str(arrays)}
        rows = [(entry["text"], f"{entry['area']:.2%}", f"{entry['highest']:.2%}") for entry in found]
        text = format_table(rows, ("text", "area", "highest probability"), path, alone=False)
        write_result(record, f"{text}{overlay}\n{arrays}\n", args.json)


def _output_files(paths: Sequence[str], folder: Path) -> dict[str, tuple[Path, Path]]:
    """Return the two files of each image. Images of one name in several folders get numbers: cat, cat-2, …

    Raises:
        UserError: one of the images would be overwritten.
    """
    files, taken, images = {}, set(), {Path(path).resolve() for path in paths}
    for path in dict.fromkeys(paths):
        name, number = Path(path).stem, 1
        while name.lower() in taken:  # some systems fold the case
            number += 1
            name = f"{Path(path).stem}-{number}"
        taken.add(name.lower())
        overlay = folder / f"{name}.overlay.png"
        files[path] = overlay, folder / f"{name}.masks.npz"
        if overlay.resolve() in images:
            raise UserError(f"{overlay} is one of the images and would be overwritten: name another folder with --out")
    return files


def segment_texts(model, processor, picture: Image.Image, texts: Sequence[str]) -> np.ndarray:
    """Return the probability of each pixel to show what each text says: (texts, height, width)."""
    import torch
    from torch.nn import functional as F

    pixels = processor(images=picture, return_tensors="pt").pixel_values.to(model.device)
    masks = []
    with torch.no_grad():
        for part in batch_texts(texts):
            tokens = processor(text=part, padding=True, return_tensors="pt").to(model.device)
            logits = model(pixel_values=pixels.expand(len(part), -1, -1, -1), **tokens).logits
            logits = logits.reshape(len(part), 1, *logits.shape[-2:])  # of one text the library drops the first axis
            size = picture.height, picture.width
            masks.append(F.interpolate(logits, size, mode="bilinear").sigmoid()[:, 0].cpu())
    return torch.cat(masks).numpy()


def draw_overlay(picture: Image.Image, masks: np.ndarray, texts: Sequence[str], threshold: float) -> Image.Image:
    """Colour the pixels of the picture from the threshold on, and add a line for each text and its colour below."""
    import numpy as np
    from matplotlib import font_manager
    from PIL import Image, ImageColor, ImageDraw, ImageFont

    pixels = np.asarray(picture, dtype=np.float32).copy()
    for mask, colour in zip(masks, cycle(COLOURS), strict=False):
        seen = mask >= threshold
        pixels[seen] = (pixels[seen] + ImageColor.getrgb(colour)) / 2
    wanted = font_manager.FontProperties(family=[*CJK_FONTS, "DejaVu Sans"])  # texts may be Chinese
    size = min(32, max(12, picture.height // 24))
    font = ImageFont.truetype(font_manager.findfont(wanted), size)
    line = size * 3 // 2
    width = max(picture.width, line + max(int(font.getlength(text)) for text in texts) + size // 2)
    sheet = Image.new("RGB", (width, picture.height + line * len(texts)), "white")
    sheet.paste(Image.fromarray(pixels.astype(np.uint8)))
    pen = ImageDraw.Draw(sheet)
    for number, (text, colour) in enumerate(zip(texts, cycle(COLOURS), strict=False)):
        top = picture.height + number * line + size // 4
        pen.rectangle((size // 4, top, size, top + size * 3 // 4), fill=colour)
        pen.text((line, top - size // 8), text, fill="black", font=font)
    return sheet
