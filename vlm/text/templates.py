"""The prompt templates that OpenAI published with CLIP; ``{}`` stands for the class name."""

from collections.abc import Sequence

from dassl.utils import UserError

# The seven best templates on ImageNet, found by forward selection (CLIP's "Prompt Engineering for ImageNet" notebook).
SELECTED_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

# The eighty templates of CLIP's ensemble on ImageNet (the same notebook).
IMAGENET_TEMPLATES = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)

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
