"""What all methods over a frozen CLIP share: loading it, and saying which one it was."""

from __future__ import annotations

import torch

from dassl.engine import TrainerX
from dassl.utils import UserError, check_at_least, check_availability, count_num_param
from vlm.class_features import description
from vlm.features import FeatureStore, ImageFeatures, cache_folder
from vlm.image_encoder import PRECISIONS, image_encoder
from vlm.load import load_shared
from vlm.openai import CLIP
from vlm.similarity import Best, logits_or_best
from vlm.text_encoder import TextEncoder, text_encoder


class CLIPTrainer(TrainerX):
    """A trainer whose ``build_model`` starts from :meth:`load_clip`."""

    needs_classes = True  # False in a method that learns from captions, too
    frozen_image_encoder = False  # True in a method that never changes it: its batches hold features, not images

    def load_clip(self, precision: str) -> CLIP:
        """The CLIP of MODEL.BACKBONE, frozen, on the trainer's device. Other runs of this process share it.

        Raises:
            UserError: as :func:`vlm.load.load`; or the INPUT keys do not give pictures of the size this CLIP takes.
        """
        backbone = self.cfg.MODEL.BACKBONE
        if self.needs_classes and not self.dm.dataset.classnames:
            raise UserError(
                f"{self.cfg.TRAINER.NAME} tells classes apart, and the data set {self.cfg.DATASET.NAME} has none"
            )
        print(f"Loading CLIP (backbone: {backbone.NAME})")
        clip, sha256 = load_shared(backbone.NAME, backbone.WEIGHTS, precision, self.device)
        if self.cfg.INPUT.NO_TRANSFORM:
            raise UserError("INPUT.NO_TRANSFORM is True, but CLIP takes pictures that have been transformed")
        resolution = clip.visual.input_resolution
        if tuple(self.cfg.INPUT.SIZE) != (resolution, resolution):
            raise UserError(
                f"INPUT.SIZE is {tuple(self.cfg.INPUT.SIZE)}, but {backbone.WEIGHTS or backbone.NAME} takes images of "
                f"({resolution}, {resolution})"
            )
        node, visual = self.cfg.INPUT, clip.visual
        learned = {"PIXEL_MEAN": [*visual.mean], "PIXEL_STD": [*visual.std], "RESIZE": visual.resize}
        for key, value in learned.items():
            given = node[key] if key == "RESIZE" else [*node[key]]
            if given != value:
                print(f"Note: INPUT.{key} is {given}, but this CLIP learned with {value}")
        self._weights = {"backbone": backbone.NAME, "file": backbone.WEIGHTS, "sha256": sha256}
        self.clip, self._clip_parameters = clip, count_num_param(clip)
        return clip

    def text_encoder(self, clip: CLIP) -> TextEncoder:
        """Its text encoder, within the memory that MODEL.BACKBONE.ACTIVATIONS_GB allows."""
        return text_encoder(clip, memory=int(self.cfg.MODEL.BACKBONE.ACTIVATIONS_GB * 1e9))

    def feature_source(self) -> ImageFeatures | None:
        node = self.cfg.FEATURES
        check_at_least(node.VIEWS, 0, "FEATURES.VIEWS")
        check_at_least(node.MAX_GB, 0, "FEATURES.MAX_GB")
        check_at_least(self.cfg.TEST.LOGITS_GB, 0, "TEST.LOGITS_GB")
        check_availability(node.PREC, PRECISIONS, "FEATURES.PREC")
        if not self.frozen_image_encoder:
            return None
        encoder = image_encoder(self.clip.visual, self._weights["sha256"], node.PREC)
        store = None
        if node.ENABLED:
            store = FeatureStore(node.CACHE_DIR or cache_folder(), encoder.description, node.MAX_GB)
        print(f"Image features: {encoder}; {f'kept in {store.folder}' if store else 'not kept (FEATURES.ENABLED)'}")
        if node.VIEWS:
            print(f"FEATURES.VIEWS {node.VIEWS}: training images repeat their random draws after {node.VIEWS} epochs")
        return ImageFeatures(encoder, store)

    def class_feature_store(self, encoder: TextEncoder) -> FeatureStore | None:
        """Where the text features of many classes are kept, of the ``encoder`` of the CLIP as it was loaded; None where
        none are (FEATURES.ENABLED)."""
        node = self.cfg.FEATURES
        if not node.ENABLED:
            return None
        told = description(encoder, self._weights["sha256"])
        return FeatureStore(node.CACHE_DIR or cache_folder(), told, node.MAX_GB)

    def logits_or_best(self, image_features: torch.Tensor, class_features: torch.Tensor) -> torch.Tensor | Best:
        """Logits (images, classes); or the best of each image, where they would take more than TEST.LOGITS_GB."""
        most = 1e9 * self.cfg.TEST.LOGITS_GB
        return logits_or_best(image_features, class_features, self.clip.logit_scale, most)

    def linear_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight (classes, embed_dim) and bias (classes,): the logits of image features are
        ``normalize(features) @ weight.t() + bias``.

        Raises:
            UserError: this method's logits do not come about that way.
        """
        raise UserError(
            f"{self.cfg.TRAINER.NAME} has no class weights: its logits are not linear in the image's feature"
        )

    def report_parameters(self) -> None:
        """Say how many parameters are trained, and their share of the whole model."""
        trained = self.trainable_parameters()
        total = self._clip_parameters + trained
        print(f"Trainable parameters: {trained:,} of {total:,} ({100 * trained / total:.4f}%)")

    def describe(self) -> dict:
        return {
            "total_parameters": self._clip_parameters + self.trainable_parameters(),
            "weights": self._weights,
            "classnames": list(self.dm.dataset.classnames),
        }
