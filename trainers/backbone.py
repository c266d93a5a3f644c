"""The CLIP of MODEL.BACKBONE, which methods hold: its encoders, where their features are kept, and what it was."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from yacs.config import CfgNode

from dassl.engine import SimpleTrainer
from dassl.utils import UserError, check_at_least, check_availability, count_num_param
from vlm.clip.load import load_cached_clip
from vlm.images.encoder import PRECISIONS, build_image_encoder
from vlm.images.extractor import CachedFeatureExtractor, FeatureStore, default_cache_dir
from vlm.openai import CLIP
from vlm.similarity import compute_logits
from vlm.text.class_features import describe_text_encoder
from vlm.text.encoder import TextEncoder, build_text_encoder


@dataclass(frozen=True, slots=True)
class Backbone:
    """A frozen CLIP on the trainer's device; other runs of this process share it."""

    clip: CLIP
    sha256: str  # of its weights
    cfg: CfgNode

    def text_encoder(self, clip: CLIP | None = None) -> TextEncoder:
        """Return the text encoder (of a changed ``clip``), within the memory of MODEL.BACKBONE.ACTIVATIONS_GB."""
        return build_text_encoder(clip or self.clip, memory=int(self.cfg.MODEL.BACKBONE.ACTIVATIONS_GB * 1e9))

    def feature_extractor(self) -> CachedFeatureExtractor:
        """Return what computes and keeps features of images, for ``trainer.feature_extractor``."""
        node = self.cfg.FEATURES
        encoder = build_image_encoder(self.clip.visual, self.sha256, node.PREC)
        store = self._store(encoder.description)
        print(f"Image features: {encoder}; {f'kept in {store.folder}' if store else 'not kept (FEATURES.ENABLED)'}")
        if node.VIEWS:
            print(f"FEATURES.VIEWS {node.VIEWS}: training images repeat their random draws after {node.VIEWS} epochs")
        return CachedFeatureExtractor(encoder, store)

    def text_feature_store(self, encoder: TextEncoder) -> FeatureStore | None:
        """Return where text features of many classes are kept; None where none are (FEATURES.ENABLED)."""
        return self._store(describe_text_encoder(encoder, self.sha256))

    def _store(self, description: dict[str, object]) -> FeatureStore | None:
        node = self.cfg.FEATURES
        return FeatureStore(node.CACHE_DIR or default_cache_dir(), description, node.MAX_GB) if node.ENABLED else None

    def logits(self, image_features: torch.Tensor, class_features: torch.Tensor) -> torch.Tensor:
        """Return logits (images, classes)."""
        return compute_logits(image_features, class_features, self.clip.logit_scale)

    def report(self, trainer: SimpleTrainer, frozen: int | None = None) -> dict:
        """Print how many parameters are trained, beside ``frozen`` ones (those of this CLIP); return record entries."""
        trained = trainer.trainable_parameters()
        total = (count_num_param(self.clip) if frozen is None else frozen) + trained
        print(f"Trainable parameters: {trained:,} of {total:,} ({100 * trained / total:.4f}%)")
        node = self.cfg.MODEL.BACKBONE
        return {
            "frozen_parameters": total - trained,
            "weights": {"backbone": node.NAME, "file": node.WEIGHTS, "sha256": self.sha256},
            "classnames": list(trainer.dm.dataset.classnames),
        }


def load_backbone(trainer: SimpleTrainer, precision: str = "fp16", needs_classes: bool = True) -> Backbone:
    """Load the CLIP of MODEL.BACKBONE.

    Args:
        precision: by default that of CoOp, so that methods share image features; what they train may be fp32.
        needs_classes: False for a method that learns from captions, too.

    Raises:
        UserError: as :func:`vlm.clip.load.load_clip`; there are no classes; or INPUT and FEATURES are not for this CLIP.
    """
    cfg, node = trainer.cfg, trainer.cfg.MODEL.BACKBONE
    check_at_least(cfg.FEATURES.VIEWS, 0, "FEATURES.VIEWS")
    check_at_least(cfg.FEATURES.MAX_GB, 0, "FEATURES.MAX_GB")
    check_at_least(cfg.TEST.LOGITS_GB, 0, "TEST.LOGITS_GB")
    check_availability(cfg.FEATURES.PREC, PRECISIONS, "FEATURES.PREC")
    if needs_classes and not trainer.dm.dataset.classnames:
        raise UserError(f"{cfg.TRAINER.NAME} tells classes apart, and the data set {cfg.DATASET.NAME} has none")
    print(f"Loading CLIP (backbone: {node.NAME})")
    clip, sha256 = load_cached_clip(node.NAME, node.WEIGHTS, precision, trainer.device)
    trainer.extra_state.frozen.append(clip)
    if cfg.INPUT.NO_TRANSFORM:
        raise UserError("INPUT.NO_TRANSFORM is True, but CLIP takes pictures that have been transformed")
    size = (clip.visual.input_resolution,) * 2
    if tuple(cfg.INPUT.SIZE) != size:
        of = node.WEIGHTS or node.NAME
        raise UserError(f"INPUT.SIZE is {tuple(cfg.INPUT.SIZE)}, but {of} takes images of {size}")
    given = [*cfg.INPUT.PIXEL_MEAN], [*cfg.INPUT.PIXEL_STD], cfg.INPUT.RESIZE
    learned = [*clip.visual.mean], [*clip.visual.std], clip.visual.resize
    for key, one, other in zip(("PIXEL_MEAN", "PIXEL_STD", "RESIZE"), given, learned, strict=True):
        if one != other:
            print(f"Note: INPUT.{key} is {one}, but this CLIP learned with {other}")
    return Backbone(clip, sha256, cfg)
