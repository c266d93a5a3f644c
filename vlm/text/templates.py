"""The prompt templates that OpenAI published with CLIP; ``{}`` stands for the class name."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from dassl.utils import UserError

# By the values of TRAINER.ZEROSHOTCLIP2.TEMPLATES and of predict.py --ensemble.
TEMPLATES: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_name("templates.yaml").read_text(encoding="utf-8"))
IMAGENET_TEMPLATES, SELECTED_TEMPLATES = TEMPLATES["all"], TEMPLATES["select"]

# Of the CLIP paper, section 3.1.4, and of Chinese-CLIP's zero-shot evaluation on ImageNet
# (cn_clip/eval/imagenet_zeroshot_templates.py in github.com/OFA-Sys/Chinese-CLIP), by the language of a text encoder.
DEFAULT_TEMPLATES = {"English": "a photo of a {}.", "Chinese": "一张{}的照片。"}


def list_templates(template: str | Sequence[str]) -> list[str]:
    """Return the templates of DATASET.TEMPLATE, which is one template or a list of them."""
    return [template] if isinstance(template, str) else list(template)


def check_template(template: str | Sequence[str], name: str) -> None:
    """Raise ``UserError`` unless a template, or each of a list, contains ``{}``; ``name``: its config key or flag.

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
