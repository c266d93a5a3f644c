"""A sentence that describes each image: BLIP, or BLIP-2 by the model's name.

python predict.py caption IMAGE… [--prompt "a photo of"] [--model Salesforce/blip2-opt-2.7b]
"""

from __future__ import annotations

import argparse

from dassl.utils import check_at_least, read_image

from .blip import generate, kinds, reads_at_most
from .images import find_images, read_each
from .neighbours import add_model_argument, check_texts, load
from .output import write_result

MODEL = "Salesforce/blip-image-captioning-base"
KINDS = kinds("BlipForConditionalGeneration", "Blip2ForConditionalGeneration")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--prompt", metavar="TEXT", help="what the sentence begins with")
    add("--max-tokens", type=int, default=30, metavar="N", help="longest sentence, in tokens (30)")
    add_model_argument(parser, MODEL)


def run(args: argparse.Namespace, name: str) -> None:
    check_at_least(args.max_tokens, 1, "--max-tokens")
    paths = find_images(args.images)
    model, processor = load(args.model, KINDS, name)
    if args.prompt is not None:
        check_texts([args.prompt], "--prompt", processor, reads_at_most(model))
    for path, picture in read_each(paths, read_image):
        caption = generate(model, processor, picture, args.prompt, args.max_tokens, with_text=True)
        write_result(
            {"image": path, "caption": caption}, caption if len(paths) == 1 else f"{path}  {caption}", args.json
        )
