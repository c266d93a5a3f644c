"""How probable each class is for each image: zero-shot, or with what a run has learned."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from dassl.utils import UserError, check_at_least, read_image
from vlm.text.templates import TEMPLATES, check_template

from . import video
from .contact_sheet import MAX_IMAGES, THUMBNAIL_PIXELS, write_contact_sheet
from .images import check_texts_are_not_images, find_images, iterate_successes, prefetch
from .output import PredictionWriter

DEFAULT_TEMPLATE = "a photo of a {}."  # of CLIP's paper, section 3.1.4
DEFAULT_BACKBONE = "ViT-B/32"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--classes", nargs="+", default=[], metavar="NAME", help='what to tell apart: cup "red envelope" cat')
    sentence = parser.add_mutually_exclusive_group()
    sentence.add_argument("--template", help=f'describes a class; {{}} is its name ("{DEFAULT_TEMPLATE}")')
    ensemble = "the mean of CLIP's 80 ImageNet templates, or of the 7 that do best there (select)"
    sentence.add_argument("--ensemble", nargs="?", const="all", choices=("all", "select"), help=ensemble)
    add("--backbone", help=f"CLIP, such as RN50 or ViT-L/14 ({DEFAULT_BACKBONE}); tiny needs no download")
    add("--weights", default="", metavar="FILE", help="CLIP weights to take instead of the backbone's own")
    add("--model-dir", metavar="RUN", help="folder of a run of train.py: what it learned, its classes and backbone")
    add("--load-epoch", type=int, metavar="N", help="of the run; without it the best, else the newest")
    add("--top-k", type=int, default=5, metavar="K", help="classes shown of each image (5)")
    add("--batch-size", type=int, default=32, metavar="N", help="images computed at once (32)")
    add("--show", metavar="SHEET.png", help="write a sheet of the pictures with their most probable classes")
    video.add_arguments(parser)


def run(args: argparse.Namespace, name: str) -> None:
    """Classify the images; those that cannot be read are named, and end it with an error when all others are done."""
    _check_args(args)
    if video.is_video_request(args):
        video.run_video(args)
        return
    paths = find_images(args.images)
    if args.show:
        _check_sheet_path(args.show, paths)
    classifier = _build_classifier(args)
    rows = PredictionWriter(paths, classifier.classnames, args)
    sheet, done = [], 0
    try:
        results = _classify_images(classifier, paths, args.batch_size, bool(args.show))
        for path, (probabilities, picture) in iterate_successes(results, len(paths)):
            predictions = rows.write(path, probabilities.tolist())
            done += 1
            if picture and len(sheet) < MAX_IMAGES:
                sheet.append((path, picture, predictions))
    finally:  # of those that were done, if it was stopped
        if sheet:
            write_contact_sheet(args.show, sheet)
            which = "" if len(sheet) == done else f", the first of {done:,}"
            print(f"{args.show} written: {len(sheet):,} pictures{which}", file=sys.stderr)


def _check_args(args: argparse.Namespace) -> None:
    """Raise :class:`UserError` for arguments that do not make sense, before anything is loaded."""
    check_at_least(args.top_k, 1, "--top-k")
    check_at_least(args.batch_size, 1, "--batch-size")
    check_texts_are_not_images(args.classes, "--classes", args.images)
    for number, name in enumerate(args.classes, start=1):
        if not name.replace("_", " ").strip():
            raise UserError(f'--classes: name {number}, "{name}", is empty')
    if args.model_dir is not None:
        for option in ("template", "ensemble", "backbone"):
            if getattr(args, option) is not None:
                raise UserError(f"--{option} does not go with --model-dir: it is a setting of the run")
    elif args.load_epoch is not None:
        raise UserError("--load-epoch is for --model-dir, the folder of a run")
    elif not args.classes:
        raise UserError('no classes: name them, --classes cup "red envelope" cat, or give a run, --model-dir RUN')
    if len(args.classes) == 1:
        only = args.classes[0]
        raise UserError(f'one class alone is certain; a question of yes or no is --classes "{only}" "not {only}"')
    if twice := sorted({name for name in args.classes if args.classes.count(name) > 1}):
        raise UserError(f'the class "{twice[0]}" is named twice')


def _check_sheet_path(sheet: str, paths: list[str]) -> None:
    if Path(sheet).suffix.lower() != ".png":
        raise UserError(f"--show writes a PNG, so give it a name that ends in .png, not {sheet}")
    if Path(sheet).resolve() in {Path(path).resolve() for path in paths}:
        raise UserError(f"--show {sheet} would overwrite one of the images")


def _build_classifier(args: argparse.Namespace):
    from . import classifier

    if args.model_dir is not None:
        return classifier.build_from_run(Path(args.model_dir), args.classes, args.load_epoch, args.weights)
    template = DEFAULT_TEMPLATE if args.template is None else args.template
    check_template(template, "--template")
    templates = TEMPLATES[args.ensemble] if args.ensemble else [template]
    return classifier.build_zero_shot(args.classes, templates, args.backbone or DEFAULT_BACKBONE, args.weights)


def _classify_images(classifier, paths: list[str], batch_size: int, show: bool) -> Iterator[tuple]:
    """Yield each image's path, and its probabilities (classes,) with a thumbnail or None, or its error."""
    import torch

    def read(path: str) -> tuple:
        picture = read_image(path)
        pixels = classifier.preprocess(picture)
        if path in shown:
            picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        return pixels, picture if path in shown else None

    shown = set(paths[:MAX_IMAGES]) if show else ()
    images = prefetch(paths, read)
    while block := list(islice(images, batch_size)):
        read_well = [result[0] for _, result in block if not isinstance(result, UserError)]
        probabilities = iter(classifier.probabilities(torch.stack(read_well)) if read_well else ())
        for path, result in block:
            yield path, result if isinstance(result, UserError) else (next(probabilities), result[1])
