"""Loads the CLIP of MODEL.BACKBONE for a trainer, with its text encoder, feature extractor and feature store."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.data.features import StoredFeatures
from dassl.engine import SimpleTrainer
from dassl.utils import UserError, check_at_least, check_availability, count_num_param
from datasets.feature_file import FeatureFile, read_feature_file
from datasets.features import feature_paths
from vlm.clip.load import load_cached_clip
from vlm.images.encoder import FEATURE_PRECISIONS, build_image_encoder
from vlm.images.extractor import CachedFeatureExtractor, FeatureStore, default_cache_dir
from vlm.openai import CLIP
from vlm.similarity import compute_logits, normalize
from vlm.text.class_features import describe_text_encoder
from vlm.text.encoder import TextEncoder, build_text_encoder

# Parameters of a CLIP, below which two threads take longer than one: they only wait for each other (tiny has 8 million,
# RN50 102 million).
SMALL_CLIP = 20_000_000
# What the methods of a group do that the data set Features does not allow, and the nearest method that does without.
ENCODER_USES = {
    "prompts": "trains through the text encoder, and the data set Features has none; TaskRes learns on text features",
    "towers": "trains the encoders, and the data set Features has none; CLIPAdapter learns on image features",
}


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP on the trainer's device. All trainers of a process with the same backbone share one ``clip``."""

    clip: CLIP
    sha256: str  # checksum of the weights of ``clip``
    cfg: CfgNode

    @property
    def embed_dim(self) -> int:
        """The number of elements of a feature."""
        return self.build_text_encoder().embed_dim

    def build_text_encoder(self, clip: CLIP | None = None) -> TextEncoder:
        """Return the text encoder of ``clip`` (None: the frozen CLIP); ACTIVATIONS_GB limits its stored activations."""
        return build_text_encoder(clip or self.clip, memory=int(self.cfg.MODEL.BACKBONE.ACTIVATIONS_GB * 1e9))

    def build_feature_extractor(self) -> CachedFeatureExtractor:
        """Return a feature extractor for the frozen image encoder, with a cache on disk if FEATURES.ENABLED."""
        node = self.cfg.FEATURES
        encoder = build_image_encoder(self.clip.visual, self.sha256, node.PREC)
        store = self._feature_store(encoder.description)
        print(f"Image features: {encoder}; {f'kept in {store.folder}' if store else 'not kept (FEATURES.ENABLED)'}")
        if node.VIEWS:
            print(f"FEATURES.VIEWS {node.VIEWS}: training images repeat their random draws after {node.VIEWS} epochs")
        return CachedFeatureExtractor(encoder, store)

    def build_text_feature_store(self, encoder: TextEncoder) -> FeatureStore | None:
        """Return the feature store for the text features of ``encoder``; None if FEATURES.ENABLED is False."""
        return self._feature_store(describe_text_encoder(encoder, self.sha256))

    def _feature_store(self, description: dict[str, object]) -> FeatureStore | None:
        """Return the feature store of the encoder with this ``description``; None if FEATURES.ENABLED is False."""
        node = self.cfg.FEATURES
        return FeatureStore(node.CACHE_DIR or default_cache_dir(), description, node.MAX_GB) if node.ENABLED else None

    def logits(self, image_features: torch.Tensor, class_features: torch.Tensor) -> torch.Tensor:
        """Return CLIP's logits (n, classes) of image features (n, dim), of any norm, and unit class features."""
        return compute_logits(image_features, class_features, self.clip.logit_scale)

    def report_parameters(self, trainer: SimpleTrainer, frozen: int | None = None) -> dict:
        """Print the number of trainable parameters; return what the record, ``result.json``, says of the model.

        It says the number of frozen parameters (``frozen``; None: all of ``clip``), CLIP's name, file and checksum, and
        the class names.
        """
        trainable = trainer.num_trainable_parameters()
        total = (count_num_param(self.clip) if frozen is None else frozen) + trainable
        print(f"Trainable parameters: {trainable:,} of {total:,} ({100 * trainable / max(total, 1):.4f}%)")
        node = self.cfg.MODEL.BACKBONE
        return {
            "frozen_parameters": total - trainable,
            "weights": {"backbone": node.NAME, "file": node.WEIGHTS, "sha256": self.sha256},
            "classnames": list(trainer.dm.dataset.classnames),
        }


@dataclass(frozen=True)
class FeatureBackbone(Backbone):
    """What the data set Features has in place of a CLIP: features and a logit scale, without encoders."""

    file: FeatureFile

    @property
    def embed_dim(self) -> int:
        """The number of elements of a feature."""
        return self.file.splits["test"][0].shape[1]

    def build_feature_extractor(self) -> StoredFeatures:  # type: ignore[override]  # trainers take both
        """Return the features of the file by what stands for their images' paths."""
        rows: dict[tuple[int | None, str], torch.Tensor] = {}
        for split, (features, _) in self.file.splits.items():
            paths = feature_paths(self.cfg, split, len(features))
            rows |= {(None, path): row for path, row in zip(paths, features, strict=True)}
        return StoredFeatures(rows)  # type: ignore[abstract]  # it has no encoder

    def check_prompts(self, templates: Sequence[str]) -> None:
        """Raise ``UserError`` for several templates or DATASET.DESCRIPTIONS, as the text features are fixed."""
        if len(templates) > 1 or self.cfg.DATASET.DESCRIPTIONS:
            problem = f"the text features in {self.file.path} are fixed; several templates and DATASET.DESCRIPTIONS"
            raise UserError(f"{problem} need a text encoder. ZeroshotCLIP, with one template, takes them as they are")
        print(f"Text features: those in {self.file.path}; DATASET.TEMPLATE does nothing")

    def class_features(self, classnames: Sequence[str]) -> torch.Tensor:
        """Return the text features (classes, dim) of these classes, of length 1, on the trainer's device."""
        file = self.file
        if file.text_features is None:
            problem = f"{self.cfg.TRAINER.NAME} needs text features, and {file.path} has none (text_features)"
            raise UserError(f"{problem}; LinearProbe learns from image features alone")
        if unknown := [name for name in classnames if name not in file.classnames]:
            raise UserError(f'{file.path} has no text feature of the class "{unknown[0]}"; its text features are fixed')
        rows = [file.classnames.index(name) for name in classnames]
        return normalize(file.text_features[rows]).to(self.clip.logit_scale.device)


def check_runs_on(cfg: CfgNode, trainer: type) -> None:
    """Raise ``UserError`` if the method, the class ``trainer``, needs encoders, and DATASET is Features."""
    if cfg.DATASET.NAME == "Features" and (group := getattr(trainer, "group", "")) in ENCODER_USES:
        raise UserError(f"{cfg.TRAINER.NAME} {ENCODER_USES[group]}")


def _load_features(cfg: CfgNode, device: torch.device) -> FeatureBackbone:
    """Return the features of DATASET.FEATURES with their logit scale on ``device``; PREC and INPUT do nothing."""
    file, clip, cfg = read_feature_file(cfg.DATASET.FEATURES), nn.Module(), cfg.clone()
    clip.register_buffer("logit_scale", torch.tensor(math.log(file.logit_scale), device=device))
    cfg.defrost()
    cfg.MODEL.BACKBONE.WEIGHTS = str(file.path)
    cfg.MODEL.BACKBONE.NAME = file.backbone or cfg.MODEL.BACKBONE.NAME
    print(f"Image features: those in {file.path}; no CLIP is loaded")
    return FeatureBackbone(clip, file.sha256, cfg, file)


def load_backbone(trainer: SimpleTrainer, precision: str = "fp16", needs_classes: bool = True) -> Backbone:
    """Load the CLIP of MODEL.BACKBONE onto the trainer's device and check the config against it.

    For the data set Features, return a ``FeatureBackbone``. The file names the backbone, else MODEL.BACKBONE.NAME.

    A small CLIP on a CPU gets one thread, unless OMP_NUM_THREADS is set. It prints a note where the pixel mean, the
    standard deviation or the resizing of INPUT differ from CLIP's training.

    Args:
        precision: fp32, fp16, bf16 or amp; with fp16, CoOp's default, all methods share one cache of image features.
        needs_classes: whether the method needs a data set with classes.

    Raises:
        UserError: CLIP cannot be loaded, needed classes are missing, or INPUT, FEATURES or TEST have unusable values.
    """
    cfg, node = trainer.cfg, trainer.cfg.MODEL.BACKBONE
    check_at_least(cfg.FEATURES.VIEWS, 0, "FEATURES.VIEWS")
    check_at_least(cfg.FEATURES.MAX_GB, 0, "FEATURES.MAX_GB")
    check_at_least(cfg.TEST.LOGITS_GB, 0, "TEST.LOGITS_GB")
    check_availability(cfg.FEATURES.PREC, FEATURE_PRECISIONS, "FEATURES.PREC")
    if needs_classes and not trainer.dm.dataset.classnames:
        raise UserError(f"{cfg.TRAINER.NAME} needs classes, and the data set {cfg.DATASET.NAME} has none")
    if cfg.DATASET.NAME == "Features":
        return _load_features(cfg, trainer.device)
    print(f"Loading CLIP (backbone: {node.NAME})")
    clip, sha256 = load_cached_clip(node.NAME, node.WEIGHTS, precision, trainer.device)
    trainer.extra_state.frozen.append(clip)
    if trainer.device.type == "cpu" and count_num_param(clip) < SMALL_CLIP and not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(1)
        print("Threads: 1, as this CLIP is small; OMP_NUM_THREADS sets another number")
    if cfg.INPUT.NO_TRANSFORM:
        raise UserError("INPUT.NO_TRANSFORM is True, but CLIP takes transformed images; set it to False")
    size = (clip.visual.input_resolution,) * 2
    if tuple(cfg.INPUT.SIZE) != size:
        backbone = node.WEIGHTS or node.NAME
        raise UserError(f"INPUT.SIZE is {tuple(cfg.INPUT.SIZE)}, but {backbone} takes images of {size}")
    configured = [*cfg.INPUT.PIXEL_MEAN], [*cfg.INPUT.PIXEL_STD], cfg.INPUT.RESIZE
    pretrained = [*clip.visual.mean], [*clip.visual.std], clip.visual.resize
    for key, value, expected in zip(("PIXEL_MEAN", "PIXEL_STD", "RESIZE"), configured, pretrained, strict=True):
        if value != expected:
            print(f"Note: INPUT.{key} is {value}, but this CLIP learned with {expected}")
    return Backbone(clip, sha256, cfg)
