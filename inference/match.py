"""The probability that a text describes an image, for each text and image, by BLIP or BLIP-2 (the --model decides).

    python predict.py match IMAGE… --text "two cats" "a dog" [--model Salesforce/blip2-itm-vit-g]

"match" is the probability that the text belongs to the image; each text is scored by itself. "cosine" is the cosine
similarity of the text's and the image's features.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .blip import prepare_inputs
from .images import add_image_arguments, check_texts_are_not_images, find_images, read_images
from .output import write_result
from .transformers_models import add_model_argument, batch_texts, check_texts, format_table, load_model

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_MODEL = "Salesforce/blip-itm-base-coco"  # BLIP's base size: a laptop without a GPU can run it
# Hugging Face model_type -> class in transformers
MODEL_CLASSES = {"blip": "BlipForImageTextRetrieval", "blip-2": "Blip2ForImageTextRetrieval"}
# Hugging Face model_type -> argument of forward (True: match logits, False: cosines), and key of that output
MATCHING_HEADS = {"blip": ("use_itm_head", "itm_score"), "blip-2": ("use_image_text_matching_head", "logits_per_image")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``match`` to ``parser``."""
    add_image_arguments(parser)
    parser.add_argument("--text", nargs="+", required=True, metavar="TEXT", help='"two cats" "a dog on a sofa"')
    add_model_argument(parser, DEFAULT_MODEL)


def run(args: argparse.Namespace, name: str) -> None:
    """Print match probability and cosine of all texts for each image; ``name`` is the command's name, for messages."""
    check_texts_are_not_images(args.text, "--text", args.images)
    paths = find_images(args.images)
    model, processor = load_model(args.model, MODEL_CLASSES, name)
    check_texts(args.text, "--text", model, processor)
    for path, picture in read_images(paths, args):
        scores = score_texts(model, processor, picture, args.text)
        matches = [{"text": text, "match": match, "cosine": cosine} for text, match, cosine in scores]
        rows = [(text, f"{match:.2%}", f"{cosine:.4f}") for text, match, cosine in scores]
        table = format_table(rows, ("text", "match", "cosine"), path, len(paths) == 1)
        write_result({"image": path, "matches": matches}, table, args.json)


def score_texts(model, processor, picture: Image.Image, texts: Sequence[str]) -> list[tuple[str, float, float]]:
    """Return (text, match probability, cosine) of each text and the picture, by a BLIP or BLIP-2 and its processor."""
    import torch

    head_option, output_key = MATCHING_HEADS[model.config.model_type]
    scores = []
    with torch.no_grad():
        for batch in batch_texts(texts):
            inputs = prepare_inputs(model, processor, picture, batch)
            cosines = model(**inputs, **{head_option: False})[output_key][0]
            inputs["pixel_values"] = inputs["pixel_values"].expand(len(batch), -1, -1, -1)
            matches = model(**inputs, **{head_option: True})[output_key].softmax(-1)[:, 1]
            scores += zip(batch, matches.tolist(), cosines.tolist(), strict=True)
    return scores
