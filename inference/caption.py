"""A caption for each image, by BLIP or BLIP-2 (the --model decides).

python predict.py caption IMAGE… [--prompt "a photo of"] [--model Salesforce/blip2-opt-2.7b]
"""

from __future__ import annotations

import argparse

from dassl.utils import check_at_least

from .blip import generate_text
from .images import add_image_arguments, find_images, read_images
from .output import write_result
from .transformers_models import add_model_argument, check_texts, load_model

DEFAULT_MODEL = "Salesforce/blip-image-captioning-base"  # BLIP's base size: a laptop without a GPU can run it
# Hugging Face model_type -> class in transformers
MODEL_CLASSES = {"blip": "BlipForConditionalGeneration", "blip-2": "Blip2ForConditionalGeneration"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``caption`` to ``parser``."""
    add_image_arguments(parser)
    add = parser.add_argument
    add("--prompt", metavar="TEXT", help="beginning of the caption")
    add("--max-tokens", type=int, default=30, metavar="N", help="maximum length of a caption, in tokens (30)")
    add_model_argument(parser, DEFAULT_MODEL)


def run(args: argparse.Namespace, name: str) -> None:
    """Print a caption for each image; ``name`` is the command's name, for messages."""
    check_at_least(args.max_tokens, 1, "--max-tokens")
    paths = find_images(args.images)
    model, processor = load_model(args.model, MODEL_CLASSES, name)
    check_texts([] if args.prompt is None else [args.prompt], "--prompt", model, processor)
    for path, picture in read_images(paths, args):
        caption = generate_text(model, processor, picture, args.prompt, args.max_tokens, return_full_text=True)
        text = caption if len(paths) == 1 else f"{path}  {caption}"
        write_result({"image": path, "caption": caption}, text, args.json)
