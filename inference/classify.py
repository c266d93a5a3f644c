"""Class probabilities for each image, by zero-shot CLIP or by the trained model of a run."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from dassl.utils import Decoding, UserError, check_at_least, check_replaceable, read_image
from vlm.text.templates import DEFAULT_TEMPLATES, TEMPLATES, check_template

from . import video
from .contact_sheet import MAX_IMAGES, THUMBNAIL_PIXELS, write_contact_sheet
from .images import (
    add_image_arguments,
    check_texts_are_not_images,
    find_images,
    iterate_successes,
    parse_decoding,
    prefetch,
    print_deep_images_note,
)
from .output import PredictionWriter

if TYPE_CHECKING:
    from .classifier import Classifier

COMMAS = re.compile("[,;\uff0c\u3001\uff1b]")  # and semicolons; also the Chinese ones
DEFAULT_BACKBONE = "ViT-B/32"  # the fewest operations an image among OpenAI's CLIPs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``classify`` to ``parser``, those for videos included."""
    add_image_arguments(parser)
    add = parser.add_argument
    add("--classes", nargs="+", default=[], metavar="NAME", help='class names: cup "red envelope" cat')
    templates = parser.add_mutually_exclusive_group()
    templates.add_argument(
        "--template", help=f"prompt for a class; {{}} is its name ({' or '.join(DEFAULT_TEMPLATES.values())})"
    )
    ensemble = "average CLIP's 80 ImageNet templates, or the 7 that do best there (select)"
    templates.add_argument("--ensemble", nargs="?", const="all", choices=("all", "select"), help=ensemble)
    add("--backbone", help=f"CLIP, such as RN50 or ViT-L/14 ({DEFAULT_BACKBONE}); tiny needs no download")
    add("--weights", default="", metavar="FILE", help="CLIP weights that replace those of the backbone")
    run = "folder of a run of train.py: its trained model, classes and backbone; or a learned prompt alone, a folder "
    add("--model-dir", metavar="RUN", help=f"{run}or checkpoint, with --backbone and --classes")
    add("--load-epoch", type=int, metavar="N", help="epoch of the run's checkpoint (the best, else the newest)")
    add("--top-k", type=int, default=5, metavar="K", help="classes shown for each image (5)")
    add("--batch-size", type=int, default=32, metavar="N", help="images in a batch (32)")
    marks = "marked right or wrong where an image's folder has the name of a class"
    add("--show", metavar="SHEET.png", help=f"write a sheet of the images with their most probable classes, {marks}")
    video.add_arguments(parser)


def run(args: argparse.Namespace, name: str) -> None:
    """Print the most probable classes of each image or video; write a contact sheet if ``args.show``.

    ``name``, the command's name, is not used.

    Raises:
        UserError: wrong arguments; or, after all readable images, some images could not be read.
    """
    _check_args(args)
    if video.is_video_request(args):
        video.run_video(args)
        return
    paths = find_images(args.images)
    if args.show:
        _check_sheet_path(args.show, paths)
    classifier = _build_classifier(args)
    decoding = classifier.decoding or parse_decoding(args)
    print_deep_images_note(paths, decoding, "INPUT.WHITE_LEVEL" if classifier.decoding else "--white-level")
    writer = PredictionWriter(paths, classifier.classnames, args)
    sheet, num_classified = [], 0
    try:
        results = classify_images(classifier, paths, decoding, args.batch_size, bool(args.show))
        for path, (logits, thumbnail) in iterate_successes(results, len(paths)):
            predictions = writer.write(path, logits, classifier.logit_scale)
            num_classified += 1
            if thumbnail and len(sheet) < MAX_IMAGES:
                sheet.append((path, thumbnail, predictions))
    finally:  # after Ctrl-C, the sheet shows the images classified so far
        if sheet:
            title = args.model_dir or f"zero-shot {args.backbone or DEFAULT_BACKBONE}"
            write_contact_sheet(args.show, sheet, classifier.classnames, title)
            limit = "" if len(sheet) == num_classified else f", the first of {num_classified:,}"
            print(f"{args.show} written: {len(sheet):,} images{limit}", file=sys.stderr)


def _check_args(args: argparse.Namespace) -> None:
    """Raise ``UserError`` for options that conflict, are missing or out of range, before a model is loaded."""
    check_at_least(args.top_k, 1, "--top-k")
    check_at_least(args.batch_size, 1, "--batch-size")
    parse_decoding(args)
    check_texts_are_not_images(args.classes, "--classes", args.images)
    _check_commas(args.classes)
    for number, name in enumerate(args.classes, start=1):
        if not name.replace("_", " ").strip():
            raise UserError(f'--classes: name {number}, "{name}", is empty')
    if args.template is not None:
        check_template(args.template, "--template")
    decoding_options = [option for option in ("orientation", "white_level") if getattr(args, option) is not None]
    if decoding_options and args.model_dir is not None:
        from .trained_run import find_run_folder  # loads the framework

        if find_run_folder(Path(args.model_dir)) is not None:
            option = decoding_options[0].replace("_", "-")
            raise UserError(f"--{option} does not go with --model-dir: the run's config sets it")
    if args.model_dir is None and args.load_epoch is not None:
        raise UserError("--load-epoch is for --model-dir, the folder of a run")
    if args.model_dir is None and not args.classes:
        raise UserError('no classes: name them, --classes cup "red envelope" cat, or name a run, --model-dir RUN')
    if len(args.classes) == 1:
        name = args.classes[0]
        raise UserError(f'one class alone has probability 1: add another, such as --classes "{name}" "not {name}"')
    if duplicates := sorted({name for name in args.classes if args.classes.count(name) > 1}):
        raise UserError(f'the class "{duplicates[0]}" is named twice')


def _check_commas(classnames: Sequence[str]) -> None:
    """Raise ``UserError`` for names with commas or semicolons between them, such as ``cup,cat``, ``cup, cat``."""
    parts = [part.strip() for part in COMMAS.split(" ".join(classnames)) if part.strip()]
    has_commas_for_spaces = len(classnames) == 1 and len(parts) > 1
    if has_commas_for_spaces or any(COMMAS.fullmatch(name.strip()[-1:]) for name in classnames):
        names = " ".join(f'"{part}"' if " " in part else part for part in parts)
        raise UserError(f"names of classes stand with spaces between them, not commas or semicolons: --classes {names}")


def _check_sheet_path(sheet: str, paths: list[str]) -> None:
    """Raise ``UserError`` unless ``sheet`` ends in .png, is no image of ``paths``, and can be written."""
    if Path(sheet).suffix.lower() != ".png":
        raise UserError(f"--show {sheet} is not the name of a PNG: let it end in .png")
    if Path(sheet).resolve() in {Path(path).resolve() for path in paths}:
        raise UserError(f"--show {sheet} would overwrite one of the images")
    check_replaceable(sheet)


def _build_classifier(args: argparse.Namespace) -> Classifier:
    """Return the classifier that the arguments describe: the model of a run, or zero-shot CLIP."""
    from . import classifier

    templates = TEMPLATES[args.ensemble] if args.ensemble else [args.template] if args.template else []
    if args.model_dir is not None:
        source, backbone = Path(args.model_dir), args.backbone or ""
        return classifier.build_from_run(source, args.classes, args.load_epoch, args.weights, backbone, templates)
    return classifier.build_zero_shot(args.classes, templates, args.backbone or DEFAULT_BACKBONE, args.weights)


def classify_images(
    classifier: Classifier, paths: list[str], decoding: Decoding, batch_size: int, with_thumbnails: bool
) -> Iterator[tuple]:
    """Yield (path, result) for each image, in order.

    A result is (logits (classes,), thumbnail or None), or the ``UserError`` of an unreadable image. The
    first ``MAX_IMAGES`` images get thumbnails if ``with_thumbnails``.
    """
    import torch

    def read(path: str) -> tuple:
        """Return the preprocessed image (3, height, width) and its thumbnail or None."""
        picture = read_image(path, decoding)
        pixels = classifier.preprocess(picture)
        if path in sheet_paths:
            picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        return pixels, picture if path in sheet_paths else None

    sheet_paths = set(paths[:MAX_IMAGES]) if with_thumbnails else ()
    images = prefetch(paths, read)
    while batch := list(islice(images, batch_size)):
        readable = [result[0] for _, result in batch if not isinstance(result, UserError)]
        logits = iter(classifier.predict(torch.stack(readable)) if readable else ())
        for path, result in batch:
            yield path, result if isinstance(result, UserError) else (next(logits), result[1])
