"""Answers to questions about each image, by BLIP or BLIP-2 (the --model decides).

python predict.py ask IMAGE… --question "how many cats are there?" [--model Salesforce/blip2-opt-2.7b]
"""

from __future__ import annotations

import argparse

from dassl.utils import check_at_least

from .blip import generate_text
from .images import add_image_arguments, check_texts_are_not_images, find_images, read_images
from .output import write_result
from .transformers_models import add_model_argument, check_texts, format_table, load_model

DEFAULT_MODEL = "Salesforce/blip-vqa-base"  # BLIP's base size: a laptop without a GPU can run it
# Hugging Face model_type -> class in transformers
MODEL_CLASSES = {"blip": "BlipForQuestionAnswering", "blip-2": "Blip2ForConditionalGeneration"}
BLIP2_PROMPT = "Question: {} Answer:"  # the BLIP-2 paper's prompt for OPT, section 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ask`` to ``parser``."""
    add_image_arguments(parser)
    add = parser.add_argument
    add("--question", nargs="+", required=True, metavar="TEXT", help='"what is on the table?" "is it day?"')
    add("--max-tokens", type=int, default=20, metavar="N", help="maximum length of an answer, in tokens (20)")
    add_model_argument(parser, DEFAULT_MODEL)


def run(args: argparse.Namespace, name: str) -> None:
    """Print, for each image, the answer that BLIP or BLIP-2 generates to each question.

    ``args`` holds the options of ``add_arguments``, ``images`` and ``json``; ``name`` is the command's name.
    """
    check_texts_are_not_images(args.question, "--question", args.images)
    check_at_least(args.max_tokens, 1, "--max-tokens")
    paths = find_images(args.images)
    model, processor = load_model(args.model, MODEL_CLASSES, name)
    check_texts(args.question, "--question", model, processor)
    template = BLIP2_PROMPT if model.config.model_type == "blip-2" else "{}"
    for path, picture in read_images(paths, args):
        rows = []
        for question in args.question:
            prompt = template.format(question)
            answer = generate_text(model, processor, picture, prompt, args.max_tokens, return_full_text=False)
            rows.append((question, answer))
        text = format_table(rows, ("question", "answer"), path, len(paths) == 1, align="left")
        record = {"image": path, "answers": [{"question": question, "answer": answer} for question, answer in rows]}
        write_result(record, text, args.json)
