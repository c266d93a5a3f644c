"""Answers to questions about each image: BLIP, or BLIP-2 by the model's name.

python predict.py ask IMAGE… --question "how many cats are there?" [--model Salesforce/blip2-opt-2.7b]
"""

from __future__ import annotations

import argparse

from dassl.utils import check_at_least, read_image

from .blip import generate, kinds, reads_at_most
from .images import check_words, find_images, read_each
from .neighbours import add_model_argument, check_texts, load, table
from .output import write_result

MODEL = "Salesforce/blip-vqa-base"
KINDS = kinds("BlipForQuestionAnswering", "Blip2ForConditionalGeneration")
PROMPT = "Question: {} Answer:"  # how BLIP-2 is asked, by its paper's section 4.3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--question", nargs="+", required=True, metavar="TEXT", help='"what is on the table?" "is it day?"')
    add("--max-tokens", type=int, default=20, metavar="N", help="longest answer, in tokens (20)")
    add_model_argument(parser, MODEL)


def run(args: argparse.Namespace, name: str) -> None:
    check_words(args.question, "--question", args.images)
    check_at_least(args.max_tokens, 1, "--max-tokens")
    paths = find_images(args.images)
    model, processor = load(args.model, KINDS, name)
    check_texts(args.question, "--question", processor, reads_at_most(model))
    for path, picture in read_each(paths, read_image):
        answers = [
            {"question": question, "answer": answer(model, processor, picture, question, args.max_tokens)}
            for question in args.question
        ]
        rows = [tuple(entry.values()) for entry in answers]
        text = table(rows, ("question", "answer"), path, len(paths) == 1, align="left")
        write_result({"image": path, "answers": answers}, text, args.json)


def answer(model, processor, picture, question: str, max_tokens: int) -> str:
    prompt = PROMPT.format(question) if model.config.model_type == "blip-2" else question
    return generate(model, processor, picture, prompt, max_tokens, with_text=False)
