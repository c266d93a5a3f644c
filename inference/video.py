"""How probable each class is for each video: X-CLIP. A video is a file, or a folder of its frames."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from dassl.utils import UserError, error_reason, read_image
from vlm.clip.hub import import_optional
from vlm.text.templates import check_template, clean_classname

from .images import find_paths, is_image, read_each
from .output import PredictionWriter
from .transformers_models import check_texts, load_model

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_MODEL = "microsoft/xclip-base-patch32"
MODEL_CLASSES = {"xclip": "XCLIPModel"}
VIDEO_EXTENSIONS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
IMAGE_ONLY_OPTIONS = ("backbone", "ensemble", "load_epoch", "model_dir", "show", "weights")  # options of classify


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("videos", "IMAGE may be a video file; X-CLIP looks at frames from all of it")
    group.add_argument("--video", action="store_true", help="each IMAGE is a video: a file, or a folder of its frames")
    meaning = f"X-CLIP: its name on the Hugging Face Hub, or a folder ({DEFAULT_MODEL})"
    group.add_argument("--model", metavar="NAME", help=meaning)


def is_video_request(args: argparse.Namespace) -> bool:
    """Tell whether classify is to look at videos; :class:`UserError` if there are images or options for images, too."""
    videos = [path for path in args.images if args.video or Path(path).suffix.lower() in VIDEO_EXTENSIONS]
    if not videos:
        if args.model is not None:
            raise UserError("--model is for videos; the CLIP that classifies images is named with --backbone")
        return False
    if others := [path for path in args.images if path not in videos]:
        raise UserError(f"{videos[0]} is a video and {others[0]} is not: classify them in turn (--video: folders)")
    for option in IMAGE_ONLY_OPTIONS:
        if getattr(args, option):
            raise UserError(f"--{option.replace('_', '-')} does not go with videos, which X-CLIP classifies")
    return True


def run_video(args: argparse.Namespace) -> None:
    """Classify the videos, as ``classify`` does images."""
    template = "{}" if args.template is None else args.template  # X-CLIP was trained with bare class names
    check_template(template, "--template")
    texts = [template.replace("{}", clean_classname(name)) for name in args.classes]
    paths = find_paths(args.images, "video")
    model, processor = load_model(args.model or DEFAULT_MODEL, MODEL_CLASSES, "the classification of videos")
    check_texts(texts, "--classes", model, processor)
    rows = PredictionWriter(paths, args.classes, args, "video")
    count = model.config.vision_config.num_frames
    for path, frames in read_each(paths, lambda path: read_frames(path, count), "video"):
        rows.write(path, classify_frames(model, processor, frames, texts))


def classify_frames(model, processor, frames: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
    """Return the probability of each text for the video; they add up to 1."""
    import torch

    inputs = processor(text=list(texts), videos=list(frames), padding=True, return_tensors="pt").to(model.device)
    with torch.no_grad():
        return model(**inputs).logits_per_video[0].softmax(-1).tolist()


def read_frames(path: str, count: int) -> list[Image.Image]:
    """Return ``count`` frames of the video, evenly from all of it; of a shorter one, some more than once.

    Raises:
        UserError: there is no frame, or the file cannot be read as a video.
    """
    if not os.path.isdir(path):
        return _decode_frames(path, count)
    files = sorted((file for file in Path(path).iterdir() if is_image(file)), key=_natural_sort_key)
    if not files:
        raise UserError(f"no frame in the folder {path}: it has no image")
    return [read_image(files[index]) for index in evenly_spaced(len(files), count)]


def _natural_sort_key(path: Path) -> list:
    """For sorting: frame-2 comes before frame-10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]


def evenly_spaced(total: int, count: int) -> list[int]:
    """Return ``count`` of the numbers below ``total``: the middles of equal parts."""
    return [(2 * part + 1) * total // (2 * count) for part in range(count)]


def _decode_frames(path: str, count: int) -> list[Image.Image]:
    """Decode the frames that are asked for; beside them, one is in memory at a time."""
    av = import_optional("av", "av", "a video file (a folder of its frames needs none)")
    try:
        with av.open(path) as video:
            if not video.streams.video:
                raise UserError(f"{path} has no pictures: it is no video")
            # The header's count is a guess in some formats, or missing; a packet holds a frame.
            total = sum(packet.size > 0 for packet in video.demux(video=0))
        while total:
            indices, frames, number = evenly_spaced(total, count), {}, -1
            with av.open(path) as video:
                video.streams.video[0].thread_type = "AUTO"
                for number, frame in enumerate(islice(video.decode(video=0), indices[-1] + 1)):
                    if number in indices:
                        frames[number] = frame.to_image()
            if number == indices[-1]:
                return [frames[index] for index in indices]
            total = number + 1  # some packets hold no frame
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as a video: {error_reason(error)}") from error
    raise UserError(f"{path} has no frame")
