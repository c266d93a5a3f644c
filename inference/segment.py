"""Segmentation of each image by texts, with CLIPSeg.

    python predict.py segment IMAGE… --text "a cat" "a remote" [--out FOLDER] [--threshold 0.5]

Two files are written for each image: <name>.overlay.png shows the image with coloured segments. <name>.masks.npz holds
``masks``, the probability of each text at each pixel (texts, height, width) in half precision, and ``texts``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from dassl.utils import UserError, atomic_write, check_replaceable
from dassl.utils.fonts import find_fonts

from .images import add_image_arguments, check_texts_are_not_images, find_images, read_images
from .output import write_result
from .transformers_models import add_model_argument, batch_texts, check_texts, format_table, load_model

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

DEFAULT_MODEL = "CIDAS/clipseg-rd64-refined"  # the weights that CLIPSeg's authors recommend
MODEL_CLASSES = {"clipseg": "CLIPSegForImageSegmentation"}  # Hugging Face model_type -> class in transformers
COLOURS = ("#e63946", "#2e86de", "#2eae60", "#f4a221", "#8e44ad", "#16bcbc", "#ec70b0")  # hues that differ clearly


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``segment`` to ``parser``."""
    add_image_arguments(parser)
    add = parser.add_argument
    add("--text", nargs="+", required=True, metavar="TEXT", help='things to segment: "a cat" "a remote"')
    add("--out", default="output/segment", metavar="FOLDER", help="folder for the files (output/segment)")
    add("--threshold", type=float, default=0.5, metavar="P", help="least probability of a pixel in a segment (0.5)")
    add_model_argument(parser, DEFAULT_MODEL)


def run(args: argparse.Namespace, name: str) -> None:
    """Write masks and overlay of each image, and print its segments; ``name`` is the command's name, for messages."""
    import numpy as np

    check_texts_are_not_images(args.text, "--text", args.images)
    if not 0 < args.threshold < 1:
        raise UserError(f"--threshold is {args.threshold}; it must be between 0 and 1")
    paths = find_images(args.images)
    output_paths = _build_output_paths(paths, Path(args.out))
    check_replaceable(*(path for pair in output_paths.values() for path in pair))
    model, processor = load_model(args.model, MODEL_CLASSES, name)
    check_texts(args.text, "--text", model, processor)
    for path, picture in read_images(paths, args):
        masks = segment_texts(model, processor, picture, args.text)
        overlay_path, masks_path = output_paths[path]
        with atomic_write(masks_path, "wb") as file:
            np.savez_compressed(file, masks=masks.astype(np.float16), texts=np.array(args.text))
        with atomic_write(overlay_path, "wb") as file:
            draw_overlay(picture, masks, args.text, args.threshold).save(file, format="PNG")
        segments = [
            {"text": text, "area": float((mask >= args.threshold).mean()), "highest": float(mask.max())}
            for text, mask in zip(args.text, masks, strict=True)
        ]
        record = {"image": path, "segments": segments, "overlay": str(overlay_path), "masks": str(masks_path)}
        rows = [(entry["text"], f"{entry['area']:.2%}", f"{entry['highest']:.2%}") for entry in segments]
        table = format_table(rows, ("text", "area", "highest probability"), path, is_single=False)
        write_result(record, f"{table}{overlay_path}\n{masks_path}\n", args.json)


def _build_output_paths(paths: Sequence[str], folder: Path) -> dict[str, tuple[Path, Path]]:
    """Return each image's (overlay path, masks path) in ``folder``; images of equal name get numbers: cat, cat-2, …

    Raises:
        UserError: one of the images would be overwritten.
    """
    output_paths, used_names, images = {}, set(), {Path(path).resolve() for path in paths}
    for path in dict.fromkeys(paths):
        name, number = Path(path).stem, 1
        while name.lower() in used_names:  # some file systems do not distinguish capitals
            number += 1
            name = f"{Path(path).stem}-{number}"
        used_names.add(name.lower())
        overlay_path = folder / f"{name}.overlay.png"
        output_paths[path] = overlay_path, folder / f"{name}.masks.npz"
        if overlay_path.resolve() in images:
            raise UserError(f"{overlay_path} is one of the images and would be overwritten: name another --out folder")
    return output_paths


def segment_texts(model, processor, picture: Image.Image, texts: Sequence[str]) -> np.ndarray:
    """Return masks (texts, height, width): CLIPSeg's probability that a pixel of the picture shows a text's object."""
    import torch
    from torch.nn import functional as F

    pixels = processor(images=picture, return_tensors="pt").pixel_values.to(model.device)
    size = picture.height, picture.width
    masks = []
    with torch.no_grad():
        for batch in batch_texts(texts):
            tokens = processor(text=batch, padding=True, return_tensors="pt").to(model.device)
            logits = model(pixel_values=pixels.expand(len(batch), -1, -1, -1), **tokens).logits
            logits = logits.reshape(len(batch), 1, *logits.shape[-2:])  # transformers drops the axis of a single text
            masks.append(F.interpolate(logits, size, mode="bilinear").sigmoid()[:, 0].cpu())
    return torch.cat(masks).numpy()


def draw_overlay(picture: Image.Image, masks: np.ndarray, texts: Sequence[str], threshold: float) -> Image.Image:
    """Return a copy of the picture above a legend of the texts; each text has a colour.

    Pixels whose probability in ``masks`` (texts, height, width) is at least ``threshold`` are coloured.
    """
    import numpy as np
    from matplotlib import font_manager
    from PIL import Image, ImageColor, ImageDraw, ImageFont

    pixels = np.asarray(picture, dtype=np.float32).copy()
    for mask, colour in zip(masks, cycle(COLOURS), strict=False):
        segment = mask >= threshold
        pixels[segment] = (pixels[segment] + ImageColor.getrgb(colour)) / 2
    size = min(32, max(12, picture.height // 24))
    font = ImageFont.truetype(font_manager.findfont(find_fonts(tuple(texts))[-1]), size)
    line = size * 3 // 2
    width = max(picture.width, line + max(int(font.getlength(text)) for text in texts) + size // 2)
    overlay = Image.new("RGB", (width, picture.height + line * len(texts)), "white")
    overlay.paste(Image.fromarray(pixels.astype(np.uint8)))
    draw = ImageDraw.Draw(overlay)
    for number, (text, colour) in enumerate(zip(texts, cycle(COLOURS), strict=False)):
        top = picture.height + number * line + size // 4
        draw.rectangle((size // 4, top, size, top + size * 3 // 4), fill=colour)
        draw.text((line, top - size // 8), text, fill="black", font=font)
    return overlay
