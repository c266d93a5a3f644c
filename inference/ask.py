"""Answers to questions about each image: BLIP, or BLIP-2 by the model's name.

python predict.py ask IMAGE… --question "how many cats are there?" [--model Salesforce/blip2-opt-2.7b]
"""

from __future__ import annotations

import argparse

from dassl.utils import check_at_least

from .blip import generate
from .images import check_words, find_images, read_each
from .neighbours import add_model_argument, check_texts, load, table
from .output import write_result

MODEL = "Salesforce/blip-vqa-base"
KINDS = {"blip": "BlipForQuestionAnswering", "blip-2": "Blip2ForConditionalGeneration"}
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
    check_texts(args.question, "--question", model, processor)
    template = PROMPT if model.config.model_type == "blip-2" else "{}"
    for path, picture in read_each(paths):
        prompts = [template.format(question) for question in args.question]
        answers = [generate(model, processor, picture, prompt, args.max_tokens, with_text=False) for prompt in prompts]
        rows = list(zip(args.question, answers, strict=True))
        text = table(rows, ("question", "answer"), path, len(paths) == 1, align="left")
        record = {"image": path, "answers": [{"question": question, "answer": answer} for question, answer in rows]}
        write_result(record, text, args.json)
