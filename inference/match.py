"""Whether texts describe each image: BLIP, or BLIP-2 by the model's name.

    python predict.py match IMAGE… --text "two cats" "a dog" [--model Salesforce/blip2-itm-vit-g]

"match" is the probability that the text belongs to the image, of each text on its own; "cosine" is the similarity of
their features.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .blip import prepare
from .images import check_words, find_images, read_each
from .neighbours import add_model_argument, check_texts, in_parts, load, table
from .output import write_result

if TYPE_CHECKING:
    from PIL import Image

MODEL = "Salesforce/blip-itm-base-coco"
KINDS = {"blip": "BlipForImageTextRetrieval", "blip-2": "Blip2ForImageTextRetrieval"}
# A model's kind -> the option that asks for matches in place of cosines, and the output that has either.
HEADS = {"blip": ("use_itm_head", "itm_score"), "blip-2": ("use_image_text_matching_head", "logits_per_image")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", nargs="+", required=True, metavar="TEXT", help='"two cats" "a dog on a sofa"')
    add_model_argument(parser, MODEL)


def run(args: argparse.Namespace, name: str) -> None:
    check_words(args.text, "--text", args.images)
    paths = find_images(args.images)
    model, processor = load(args.model, KINDS, name)
    check_texts(args.text, "--text", model, processor)
    for path, picture in read_each(paths):
        found = scores(model, processor, picture, args.text)
        matches = [{"text": text, "match": match, "cosine": cosine} for text, match, cosine in found]
        rows = [(text, f"{match:.2%}", f"{cosine:.4f}") for text, match, cosine in found]
        text = table(rows, ("text", "match", "cosine"), path, len(paths) == 1)
        write_result({"image": path, "matches": matches}, text, args.json)


def scores(model, processor, picture: Image.Image, texts: Sequence[str]) -> list[tuple[str, float, float]]:
    """Return each text with the probability of its match and its cosine with the picture."""
    import torch

    option, output = HEADS[model.config.model_type]
    found = []
    with torch.no_grad():
        for part in in_parts(texts):
            inputs = prepare(model, processor, picture, part)
            cosines = model(**inputs, **{option: False})[output][0]
            inputs["pixel_values"] = inputs["pixel_values"].expand(len(part), -1, -1, -1)
            matches = model(**inputs, **{option: True})[output].softmax(-1)[:, 1]
            found += zip(part, matches.tolist(), cosines.tolist(), strict=True)
    return found
