"""The prompt templates that OpenAI published with CLIP; ``{}`` stands for the class name."""

import runpy
from collections.abc import Sequence
from functools import cache
from typing import Any

from dassl.utils import UserError, locate_package_file


@cache
def read_open_clip_metadata() -> dict[str, Any]:
    """Return OpenAI's templates and ImageNet class names as open_clip has them; its whole package takes seconds."""
    return runpy.run_path(str(locate_package_file("open_clip_torch", "open_clip/zero_shot_metadata.py")))


def _read_templates(name: str) -> tuple[str, ...]:
    """Return the templates that open_clip keeps under ``name``, as functions of the class name."""
    return tuple(template("{}") for template in read_open_clip_metadata()[name])


# CLIP's notebook "Prompt Engineering for ImageNet": its eighty templates, and the seven best on ImageNet among them.
IMAGENET_TEMPLATES = _read_templates("OPENAI_IMAGENET_TEMPLATES")
SELECTED_TEMPLATES = _read_templates("SIMPLE_IMAGENET_TEMPLATES")

# Of the CLIP paper, section 3.1.4, and of Chinese-CLIP's zero-shot evaluation on ImageNet
# (cn_clip/eval/imagenet_zeroshot_templates.py in github.com/OFA-Sys/Chinese-CLIP), by the language of a text encoder.
DEFAULT_TEMPLATES = {"English": "a photo of a {}.", "Chinese": "一张{}的照片。"}

# By the values of TRAINER.ZEROSHOTCLIP2.TEMPLATES and of predict.py --ensemble.
TEMPLATES = {"select": SELECTED_TEMPLATES, "all": IMAGENET_TEMPLATES}


def list_templates(template: str | Sequence[str]) -> list[str]:
    """Return the templates of DATASET.TEMPLATE, which is one template or a list of them."""
    return [template] if isinstance(template, str) else list(template)


def check_template(template: str | Sequence[str], name: str) -> None:
    """Raise :class:`UserError` unless a template, or each of a list, contains ``{}``; ``name``: its config key or flag.

    An empty list is refused, too.
    """
    templates = list_templates(template)
    if not templates:
        raise UserError(f"{name} is an empty list; there must be at least one template")
    for text in templates:
        if "{}" not in text:
            raise UserError(f'{name} "{text}" has no {{}} for the class name')


def clean_classname(classname: str) -> str:
    """Return a class name with spaces for underscores."""
    return classname.replace("_", " ")
