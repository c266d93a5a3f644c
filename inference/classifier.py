"""What tells pictures apart: CLIP with class names, or with what a run has learned."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.data.transforms import Pipeline, build_transform
from dassl.utils import UserError
from vlm.clip.load import load_cached_clip
from vlm.images.encoder import get_input_dtype
from vlm.similarity import compute_logits
from vlm.text.classnames import find_identical_names
from vlm.text.encoder import TextEncoder, build_text_encoder
from vlm.text.templates import clean_classname
from vlm.text.zero_shot import build_zero_shot_classifier

from .trained_run import load_trainer, suppress_stdout


@dataclass(frozen=True)
class Classifier:
    """Classes, and a function from images (n, 3, height, width), which ``preprocess`` makes of pictures, to logits
    (n, classes)."""

    classnames: Sequence[str]
    preprocess: Pipeline
    logits: Callable[[torch.Tensor], torch.Tensor]

    @torch.no_grad()
    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """Return the probability of each class (n, classes), on the CPU; those of an image add up to 1."""
        return self.logits(images).float().softmax(-1).cpu()


def build_zero_shot(
    classnames: Sequence[str], templates: Sequence[str], backbone: str, weights: str = ""
) -> Classifier:
    """Return CLIP itself: classes are described by ``templates``, sentences with ``{}``, once for all images.

    Raises:
        UserError: as :func:`vlm.clip.load.load_clip`; a name is empty, two are the same to CLIP, or a sentence is too long.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
        clip, _ = load_cached_clip(backbone, weights, "fp32", device)
    encoder = build_text_encoder(clip)
    _check_distinct_classes(encoder, classnames)
    features = build_zero_shot_classifier(encoder, classnames, templates)
    encode, preprocess = _build_encode_function(clip.visual), build_preprocessing(clip.visual)
    return Classifier(classnames, preprocess, lambda images: compute_logits(encode(images), features, clip.logit_scale))


def build_preprocessing(visual: nn.Module) -> Pipeline:
    """Return the preprocessing of images that a CLIP of :func:`vlm.clip.load.load_clip` learned with."""
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (visual.input_resolution,) * 2
    cfg.INPUT.INTERPOLATION = "bicubic"
    cfg.INPUT.TRANSFORMS = ("normalize",)
    cfg.INPUT.PIXEL_MEAN = list(visual.mean)
    cfg.INPUT.PIXEL_STD = list(visual.std)
    cfg.INPUT.RESIZE = visual.resize
    with suppress_stdout():
        return build_transform(cfg, is_train=False)


def build_from_run(
    folder: Path, classes: Sequence[str] = (), epoch: int | None = None, weights: str = ""
) -> Classifier:
    """Return what the run in ``folder`` learned (see :func:`inference.trained_run.load_trainer`).

    Raises:
        UserError: as that; or two of the ``classes`` are the same to CLIP.
    """
    trainer = load_trainer(folder, classes, epoch, weights)
    if classes and hasattr(trainer, "backbone"):
        _check_distinct_classes(trainer.backbone.text_encoder(), classes)
    visual = get_frozen_image_encoder(trainer)
    encode = _build_encode_function(visual) if visual else lambda images: images.to(trainer.device)
    with suppress_stdout():
        preprocess = build_transform(trainer.cfg, is_train=False)
    names = trainer.dm.dataset.classnames
    return Classifier(names, preprocess, lambda images: trainer.model_inference(encode(images)))


def _check_distinct_classes(encoder: TextEncoder, classes: Sequence[str]) -> None:
    """Raise :class:`UserError` where somebody asks for classes that nothing tells apart."""
    for group in find_identical_names(encoder, [clean_classname(name) for name in classes]):
        told = " and ".join(f'"{classes[number]}"' for number in group)
        raise UserError(f"the classes {told} are the same words to CLIP; it cannot tell them apart")


def get_frozen_image_encoder(trainer) -> nn.Module | None:
    """Return the frozen image encoder, whose features ``model_inference`` takes; None where that takes images."""
    return trainer.feature_extractor and trainer.feature_extractor.encoder.visual


def _build_encode_function(visual: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function from images on any device to features on that of the encoder."""
    device, dtype = next(visual.parameters()).device, get_input_dtype(visual)
    return lambda images: visual(images.to(device, dtype))
