"""CLIP-Adapter: a bottleneck network adapts the image features of a frozen CLIP; the prompt is hand-written.

Gao et al., CLIP-Adapter: Better Vision-Language Models with Feature Adapters, 2021, section 3.2. The adapter has two
linear layers, ``A(f) = ReLU(f W1) W2``. Its output is mixed with the image feature f,
``f* = ratio * A(f) + (1 - ratio) * f``, and trained by cross-entropy over CLIP's logits. As in the authors' code, the
second layer has a ReLU too, the adapter takes features that are not normalised, and checkpoints have the same keys.
"""

from __future__ import annotations

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.utils import UserError

from .shots import cross_entropy_step, load_zero_shot, register_feature_model


@TRAINER_REGISTRY.register()
class CLIPAdapter(TrainerX):
    """Trains an adapter of image features, and classifies by hand-written prompts."""

    display_name = "CLIP-Adapter"
    group = "features"

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add TRAINER.CLIPADAPTER, the config node of this method, with its defaults to ``cfg``, in place."""
        cfg.TRAINER.CLIPADAPTER = CfgNode()
        cfg.TRAINER.CLIPADAPTER.RATIO = 0.2  # weight of adapted features, from 0 (zero-shot) to 1; the authors' value
        cfg.TRAINER.CLIPADAPTER.REDUCTION = 4  # feature width / bottleneck width; the authors' value

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise ``UserError`` for a RATIO outside 0 to 1."""
        if not 0 <= (ratio := cfg.TRAINER.CLIPADAPTER.RATIO) <= 1:
            raise UserError(f"TRAINER.CLIPADAPTER.RATIO is {ratio}; it must be from 0 to 1")

    def build_model(self) -> None:
        """Encode the prompts, and register the adapter."""
        self.backbone, self.class_features = load_zero_shot(self)
        dim, reduction = self.class_features.shape[1], self.cfg.TRAINER.CLIPADAPTER.REDUCTION
        if not 1 <= reduction <= dim:
            limits = f"from 1 to the features' width, {dim}"
            raise UserError(f"TRAINER.CLIPADAPTER.REDUCTION is {reduction}; it must be {limits}")
        W1, W2 = nn.Linear(dim, dim // reduction, bias=False), nn.Linear(dim // reduction, dim, bias=False)
        adapter = nn.ModuleDict({"fc": nn.Sequential(W1, nn.ReLU(), W2, nn.ReLU())})
        register_feature_model(self, self.backbone, "clip_adapter", adapter, has_class_weights=False)

    forward_backward = cross_entropy_step

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        """Return scaled logits (images, classes) for CLIP's image features (images, dim), not normalised."""
        f, A, ratio = input.float(), self.model.fc, self.cfg.TRAINER.CLIPADAPTER.RATIO
        return self.backbone.logits(ratio * A(f) + (1 - ratio) * f, self.class_features)
