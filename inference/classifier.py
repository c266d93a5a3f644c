"""Image classifiers: zero-shot CLIP, or the trained model of a run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.data.decoding import get_decoding
from dassl.data.features import StoredFeatures
from dassl.data.transforms import Pipeline, build_transform
from dassl.utils import Decoding, UserError
from vlm.clip.load import load_cached_clip
from vlm.images.encoder import get_input_dtype
from vlm.openai import CLIP
from vlm.similarity import compute_logits
from vlm.text.classnames import find_identical_names
from vlm.text.encoder import TextEncoder, build_text_encoder, get_language
from vlm.text.language import print_language_notes
from vlm.text.templates import DEFAULT_TEMPLATES, clean_classname, list_templates
from vlm.text.zero_shot import build_zero_shot_classifier

from .prompt_checkpoint import set_preprocessing
from .trained_run import CLIP_TRAINERS, find_run_folder, load_trainer, suppress_stdout


@dataclass(frozen=True)
class Classifier:
    """An image classifier: class names in label order, preprocessing, and logits.

    ``preprocess`` turns a PIL image into a tensor (3, height, width). ``logits`` turns a batch of these tensors
    (n, 3, height, width) into logits (n, classes). These are ``logit_scale`` times the cosines of image and class
    features; it is None for a method of other logits. ``decoding`` is that of the images of a run; None without a run.
    """

    classnames: Sequence[str]
    preprocess: Pipeline
    logits: Callable[[torch.Tensor], torch.Tensor]
    logit_scale: float | None
    decoding: Decoding | None = None

    @torch.no_grad()
    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (n, classes), fp32 on the CPU, of preprocessed images (n, 3, height, width).

        Raise ``UserError`` if they do not depend on the images: all are equal, also those of the negatives.
        """
        logits = self.logits(images).float().cpu()
        # Nearly equal images may have equal logits in half precision, but not the same as their negatives.
        if (logits == logits[0]).all() and torch.equal(logits, self.logits(1 - images).float().cpu()):
            raise UserError("the logits do not depend on the image: the model's weights are damaged")
        return logits


def build_zero_shot(
    classnames: Sequence[str], templates: Sequence[str], backbone: str, weights: str = ""
) -> Classifier:
    """Return a zero-shot CLIP classifier, on a GPU if there is one. It computes the class features once.

    Args:
        classnames: class names in label order.
        templates: prompt templates with ``{}`` for the class name; their features are averaged. None: the default
            template of the language that the CLIP learned from.
        backbone: name of the CLIP, such as RN50.
        weights: path of a CLIP weights file that replaces the backbone's weights, or "".

    Raises:
        UserError: as ``vlm.clip.load.load_clip``; two class names have the same tokens; a prompt is too long.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
        clip, _ = load_cached_clip(backbone, weights, "fp32", device)
        templates = templates or [DEFAULT_TEMPLATES[get_language(clip)]]
        print_language_notes(get_language(clip), classnames, templates)
    encoder = build_text_encoder(clip)
    _check_distinct_classes(encoder, classnames)
    features = build_zero_shot_classifier(encoder, classnames, templates)
    encode, preprocess = _build_encode_function(clip.visual), build_preprocessing(clip.visual)
    logits = lambda images: compute_logits(encode(images), features, clip.logit_scale)  # noqa: E731
    return Classifier(classnames, preprocess, logits, clip.logit_scale.exp().item())


def build_preprocessing(visual: nn.Module) -> Pipeline:
    """Return the test-time transform, from a picture to a tensor, of the image encoder ``visual`` of a loaded CLIP."""
    cfg = get_cfg_default()
    set_preprocessing(cfg, visual)
    with suppress_stdout():
        transform = build_transform(cfg, is_train=False)
    assert transform is not None  # INPUT.NO_TRANSFORM is False by default
    return transform


def build_from_run(
    source: Path,
    classnames: Sequence[str] = (),
    epoch: int | None = None,
    weights: str = "",
    backbone: str = "",
    templates: Sequence[str] = (),
) -> Classifier:
    """Return a classifier with the trained model of a run, or with a learned prompt.

    The arguments are those of ``inference.trained_run.load_trainer``.

    Raises:
        UserError: as ``load_trainer``; or two of ``classnames`` have the same tokens.
    """
    trainer = load_trainer(source, classnames, epoch, weights, backbone, templates)
    visual, has_clip = get_frozen_image_encoder(trainer), hasattr(trainer, "backbone")
    if classnames and has_clip:
        _check_distinct_classes(trainer.backbone.build_text_encoder(), classnames)
    if (classnames or templates) and has_clip:  # the log of the run has the notes on its own ones
        has_prompts = trainer.cfg.TRAINER.NAME in CLIP_TRAINERS
        used_templates = list_templates(trainer.cfg.DATASET.TEMPLATE) if has_prompts else ()
        with contextlib.redirect_stdout(sys.stderr):
            print_language_notes(get_language(trainer.backbone.clip), classnames, used_templates)
    encode = _build_encode_function(visual) if visual else lambda images: images.to(trainer.device)
    with suppress_stdout():
        preprocess = build_transform(trainer.cfg, is_train=False)
    assert preprocess is not None  # CLIP's trainers refuse INPUT.NO_TRANSFORM
    logits = lambda images: trainer.model_inference(encode(images))  # noqa: E731
    decoding = get_decoding(trainer.cfg) if find_run_folder(source) else None
    return Classifier(trainer.dm.dataset.classnames, preprocess, logits, get_logit_scale(trainer), decoding)


def get_logit_scale(trainer) -> float | None:
    """Return the factor between a trainer's cosines of image and class features and its logits; None without cosines.

    The class that defines ``model_inference`` must declare them: a subclass that overrides it may have other logits.
    """
    definer = next(cls for cls in type(trainer).__mro__ if "model_inference" in vars(cls))
    return get_clip(trainer).logit_scale.exp().item() if vars(definer).get("has_cosine_logits") else None


def get_clip(trainer) -> CLIP:
    """Return the CLIP that a trainer classifies with: the fine-tuned one, if any, else its backbone."""
    return getattr(getattr(trainer, "model", None), "clip", trainer.backbone.clip)


def _check_distinct_classes(encoder: TextEncoder, classnames: Sequence[str]) -> None:
    """Raise ``UserError`` if two class names have the same tokens, so the same features."""
    for labels in find_identical_names(encoder, [clean_classname(name) for name in classnames]):
        quoted = " and ".join(f'"{classnames[label]}"' for label in labels)
        raise UserError(f"the classes {quoted} are the same words to CLIP; it cannot tell them apart")


def get_frozen_image_encoder(trainer) -> nn.Module | None:
    """Return the frozen image encoder whose features ``trainer.model_inference`` takes; None if it takes images.

    Raises ``UserError`` for a run on the data set Features, whose features came without their encoder.
    """
    if isinstance(trainer.feature_extractor, StoredFeatures):
        hint = "tools/export_classifier.py writes its class weights"
        raise UserError(f"a run on the data set Features has no image encoder for images; {hint}")
    return trainer.feature_extractor and trainer.feature_extractor.encoder.visual


def _build_encode_function(visual: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function from images on any device to features, not normalized, on the device of ``visual``."""
    device, dtype = next(visual.parameters()).device, get_input_dtype(visual)
    return lambda images: visual(images.to(device, dtype))
