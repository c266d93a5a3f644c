"""Class probabilities for each video, by X-CLIP. A video is a file, or a folder of its frames."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from dassl.utils import Decoding, UserError, error_reason, import_optional, read_image
from vlm.text.templates import check_template, clean_classname

from .images import find_paths, is_image, is_system_file, parse_decoding, print_deep_images_note, read_each
from .output import PredictionWriter
from .transformers_models import check_texts, load_model

if TYPE_CHECKING:
    import torch
    from PIL import Image

DEFAULT_MODEL = "microsoft/xclip-base-patch32"  # the smallest published X-CLIP: a laptop without a GPU can run it
MODEL_CLASSES = {"xclip": "XCLIPModel"}  # Hugging Face model_type -> class in transformers
# Extensions of videos, which FFmpeg decodes.
VIDEO_EXTENSIONS = {".3g2", ".3gp", ".asf", ".avi", ".f4v", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg"}
VIDEO_EXTENSIONS |= {".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
IMAGE_ONLY_OPTIONS = ("backbone", "ensemble", "load_epoch", "model_dir", "show", "weights")  # X-CLIP has none of these


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for videos to the ``parser`` of classify."""
    group = parser.add_argument_group("videos", "IMAGE may be a video file; X-CLIP sees evenly spaced frames of it")
    group.add_argument("--video", action="store_true", help="each IMAGE is a video: a file, or a folder of its frames")
    text = f"X-CLIP: its name on the Hugging Face Hub, or a folder ({DEFAULT_MODEL})"
    group.add_argument("--model", metavar="NAME", help=text)


def is_video_request(args: argparse.Namespace) -> bool:
    """Return whether the arguments of classify ask for videos: by ``--video``, or by a video's file extension.

    Raises:
        UserError: videos are mixed with images, or with options for images; or images come with ``--model``.
    """
    videos = [path for path in args.images if args.video or Path(path).suffix.lower() in VIDEO_EXTENSIONS]
    if not videos:
        if args.model is not None:
            raise UserError("--model is for videos; the CLIP that classifies images is named with --backbone")
        return False
    if images := [path for path in args.images if path not in videos and not is_system_file(path)]:
        raise UserError(f"{videos[0]} is a video and {images[0]} is not: classify them in turn (--video: folders)")
    for option in IMAGE_ONLY_OPTIONS:
        if getattr(args, option):
            flag = f"--{option.replace('_', '-')}"
            raise UserError(f"{videos[0]} is a video, which X-CLIP classifies: {flag} does not go with it")
    return True


def run_video(args: argparse.Namespace) -> None:
    """Print the most probable of ``args.classes`` for each video in ``args.images``, by X-CLIP."""
    template = "{}" if args.template is None else args.template  # X-CLIP was trained with bare class names
    check_template(template, "--template")
    texts = [template.replace("{}", clean_classname(name)) for name in args.classes]
    paths = find_paths(args.images, "video")
    model, processor = load_model(args.model or DEFAULT_MODEL, MODEL_CLASSES, "the classification of videos")
    check_texts(texts, "--classes", model, processor)
    writer = PredictionWriter(paths, args.classes, args, "video")
    count = model.config.vision_config.num_frames
    decoding = parse_decoding(args)
    print_deep_images_note(
        [str(file) for path in paths if os.path.isdir(path) for file in _list_frames(path)], decoding
    )
    for path, frames in read_each(paths, lambda path: read_frames(path, count, decoding), "video"):
        writer.write(path, classify_frames(model, processor, frames, texts), model.logit_scale.exp().item())


def classify_frames(model, processor, frames: Sequence[Image.Image], texts: Sequence[str]) -> torch.Tensor:
    """Return the logit of each text (texts,), fp32 on the CPU, for the video with these frames.

    ``model`` is an X-CLIP and ``processor`` its own; ``frames`` are ``model.config.vision_config.num_frames`` pictures.
    """
    import torch

    inputs = processor(text=list(texts), videos=list(frames), padding=True, return_tensors="pt").to(model.device)
    with torch.no_grad():
        return model(**inputs).logits_per_video[0].float().cpu()


def read_frames(path: str, count: int, decoding: Decoding) -> list[Image.Image]:
    """Return ``count`` evenly spaced frames of a video; a video with fewer frames repeats some.

    Args:
        path: path of a video file, or of a folder with one image for each frame, in the order of their numbers.
        decoding: how the images in a folder become RGB.

    Raises:
        UserError: there is no frame, or the file cannot be read as a video.
    """
    if not os.path.isdir(path):
        return _decode_frames(path, count)
    files = _list_frames(path)
    if not files:
        raise UserError(f"no frame in the folder {path}: it has no image")
    return [read_image(files[index], decoding) for index in evenly_spaced(len(files), count)]


def _list_frames(folder: str) -> list[Path]:
    """Return the images in ``folder``, in the order of the numbers in their names."""
    return sorted((file for file in Path(folder).iterdir() if is_image(file)), key=_natural_sort_key)


def _natural_sort_key(path: Path) -> list:
    """Return a sort key of the file name in which numbers count as numbers: frame-2 comes before frame-10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]


def evenly_spaced(total: int, count: int) -> list[int]:
    """Return the middle index, rounded down, of each of ``count`` equal intervals of ``range(total)``."""
    return [(2 * interval + 1) * total // (2 * count) for interval in range(count)]


def _decode_frames(path: str, count: int) -> list[Image.Image]:
    """Return ``count`` evenly spaced frames of a video file; memory holds these and one more.

    Raises:
        UserError: the package av is missing, the file is not a video, or it has no frame.
    """
    av = import_optional("av", "av", "a video file (a folder of its frames needs none)")
    try:
        with av.open(path) as video:
            if not video.streams.video:
                raise UserError(f"{path} is not a video: it has no video stream")
            # The frame count in the header is an estimate, or missing, in some formats. A packet holds one frame.
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
            total = number + 1  # fewer frames than packets: some packets hold none
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as a video: {error_reason(error)}") from error
    raise UserError(f"{path} has no frame")
