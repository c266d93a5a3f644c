"""Whether texts describe each image: BLIP, or BLIP-2 by the model's name.

    python predict.py match IMAGE… --text "two cats" "a dog" [--model Salesforce/blip2-itm-vit-g]

"match" is the probability that the text belongs to the image, of each text on its own; "cosine" is the similarity of
their features.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .blip import prepare_inputs
from .images import check_texts_are_not_images, find_images, read_each
from .output import write_result
from .transformers_models import add_model_argument, batch_texts, check_texts, format_table, load_model

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_MODEL = "Salesforce/blip-itm-base-coco"
MODEL_CLASSES = {"blip": "BlipForImageTextRetrieval", "blip-2": "Blip2ForImageTextRetrieval"}
# A model's kind -> the option that asks for matches in place of cosines, and the output that has either.
MATCHING_HEADS = {"blip": ("use_itm_head", "itm_score"), "blip-2": ("use_image_text_matching_head", "logits_per_image")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", nargs="+", required=True, metavar="TEXT", help='"two cats" "a dog on a sofa"')
    add_model_argument(parser, DEFAULT_MODEL)


def run(args: argparse.Namespace, name: str) -> None:
    check_texts_are_not_images(args.text, "--text", args.images)
    paths = find_images(args.images)
    model, processor = load_model(args.model, MODEL_CLASSES, name)
    check_texts(args.text, "--text", model, processor)
    for path, picture in read_each(paths):
        found = score_texts(model, processor, picture, args.text)
        matches = [{"text": text, "match": match, "cosine": cosine} for text, match, cosine in found]
        rows = [(text, f"{match:.2%}", f"{cosine:.4f}") for text, match, cosine in found]
        text = format_table(rows, ("text", "match", "cosine"), path, len(paths) == 1)
        write_result({"image": path, "matches": matches}, text, args.json)


def score_texts(model, processor, picture: Image.Image, texts: Sequence[str]) -> list[tuple[str, float, float]]:
    """Return each text with the probability of its match and its cosine with the picture."""
    import torch

    option, output = MATCHING_HEADS[model.config.model_type]
    found = []
    with torch.no_grad():
        for part in batch_texts(texts):
            inputs = prepare_inputs(model, processor, picture, part)
            cosines = model(**inputs, **{option: False})[output][0]
            inputs["pixel_values"] = inputs["pixel_values"].expand(len(part), -1, -1, -1)
            matches = model(**inputs, **{option: True})[output].softmax(-1)[:, 1]
            found += zip(part, matches.tolist(), cosines.tolist(), strict=True)
    return found
