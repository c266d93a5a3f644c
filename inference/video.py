"""How probable each class is for each video: X-CLIP. A video is a file, or a folder of its frames."""

from __future__ import annotations

import argparse
import glob
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dassl.utils import UserError, read_image, reason_of
from vlm.clip.hub import optional
from vlm.text.templates import check_template, readable

from .images import is_image, read_each
from .neighbours import check_texts, load
from .output import Rows, write_result

if TYPE_CHECKING:
    from PIL import Image

MODEL = "microsoft/xclip-base-patch32"
KINDS = {"xclip": ("XCLIPModel", "XCLIPProcessor")}
EXTENSIONS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
OF_IMAGES = ("backbone", "ensemble", "load_epoch", "model_dir", "show", "weights")  # options of classify


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("videos", "IMAGE may be a video file; X-CLIP looks at frames from all of it")
    group.add_argument("--video", action="store_true", help="each IMAGE is a video: a file, or a folder of its frames")
    group.add_argument(
        "--model", metavar="NAME", help=f"X-CLIP: its name on the Hugging Face Hub, or a folder ({MODEL})"
    )


def is_video(path: str | os.PathLike) -> bool:
    """Whether that is the name of a video file."""
    return Path(path).suffix.lower() in EXTENSIONS


def wanted(args: argparse.Namespace) -> bool:
    """Whether classify is to look at videos.

    Raises:
        UserError: videos and images are mixed, or an option is for the other of the two.
    """
    videos = [path for path in args.images if args.video or is_video(path)]
    if not videos:
        if args.model is not None:
            raise UserError("--model is for videos; the CLIP that classifies images is named with --backbone")
        return False
    if len(videos) < len(args.images):
        other = next(path for path in args.images if path not in videos)
        raise UserError(
            f"{videos[0]} is a video and {other} is not: classify them one after the other (--video: folders)"
        )
    for option in OF_IMAGES:
        if getattr(args, option, None):
            raise UserError(f"--{option.replace('_', '-')} does not go with videos, which X-CLIP classifies")
    return True


def run_video(args: argparse.Namespace) -> None:
    """Classify the videos, as ``classify`` does images."""
    template = "{}" if args.template is None else args.template  # X-CLIP was trained with bare class names
    check_template(template, "--template")
    texts = [template.replace("{}", readable(name)) for name in args.classes]
    paths = find_videos(args.images)
    model, processor = load(args.model or MODEL, KINDS, "the classification of videos")
    check_texts(texts, "--classes", processor, model.config.text_config.max_position_embeddings)
    rows = Rows(paths, args.classes, args.top_k, "video")
    if len(paths) > 1 and not args.json:
        print(rows.head)
    for path, frames in read_each(
        paths, lambda path: read_frames(path, model.config.vision_config.num_frames), "video"
    ):
        predictions = rows.best(probabilities(model, processor, frames, texts))
        write_result({"video": path, "predictions": predictions}, rows.text(path, predictions), args.json)


def probabilities(model, processor, frames: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
    """Of each text for the video; they add up to 1."""
    import torch

    inputs = processor(text=list(texts), videos=list(frames), padding=True, return_tensors="pt").to(model.device)
    with torch.no_grad():
        return model(**inputs).logits_per_video[0].softmax(-1).tolist()


def find_videos(arguments: Sequence[str]) -> list[str]:
    """Paths of videos: files and folders of frames as they are, and those that glob patterns match, sorted; for ``-``
    the paths on standard input, one a line.

    Raises:
        UserError: an argument leads to none.
    """
    found = []
    for argument in arguments:
        if argument == "-":
            found += [line.strip() for line in sys.stdin if line.strip()]
        elif matches := [argument] if os.path.exists(argument) else sorted(glob.glob(argument, recursive=True)):
            found += matches
        else:
            raise UserError(f"video not found: {argument}")
    if not found:
        raise UserError("no videos: there was no path on standard input")
    return found


def read_frames(path: str, count: int) -> list[Image.Image]:
    """So many frames of the video, evenly from all of it; of a shorter one, some more than once.

    Raises:
        UserError: there is no frame, or the file cannot be read as a video.
    """
    if not os.path.isdir(path):
        return _decode(path, count)
    files = sorted((file for file in Path(path).iterdir() if is_image(file)), key=_number_order)
    if not files:
        raise UserError(f"no frame in the folder {path}: it has no image")
    return [read_image(files[index]) for index in spread(len(files), count)]


def _number_order(path: Path) -> list:
    """For sorting: frame-2 comes before frame-10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]


def spread(total: int, count: int) -> list[int]:
    """``count`` of the numbers below ``total``: the middles of equal parts."""
    return [(2 * part + 1) * total // (2 * count) for part in range(count)]


def _decode(path: str, count: int) -> list[Image.Image]:
    av = optional("av", "av", "a video file (a folder of its frames needs none)")
    try:
        with av.open(path) as video:
            if not video.streams.video:
                raise UserError(f"{path} has no pictures: it is no video")
            # The header's count is a guess in some formats, or missing; a packet holds a frame.
            total = sum(packet.size > 0 for packet in video.demux(video=0))
        while total:
            frames, decoded = _pick(av, path, spread(total, count))
            if len(frames) == count:
                return frames
            total = decoded  # some packets hold none
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as a video: {reason_of(error)}") from error
    raise UserError(f"{path} has no frame")


def _pick(av, path: str, indices: Sequence[int]) -> tuple[list[Image.Image], int]:
    """The frames of those numbers as far as there are such, and how many frames were seen. One is in memory at a time
    beside those that are asked for."""
    picked, seen = {}, 0
    with av.open(path) as video:
        video.streams.video[0].thread_type = "AUTO"
        for seen, frame in enumerate(video.decode(video=0), start=1):
            if seen - 1 in indices:
                picked[seen - 1] = frame.to_image()
            if seen > indices[-1]:
                break
    return [picked[index] for index in indices if index in picked], seen
