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
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UserError, load_pretrained_weights
from vlm.text.templates import check_template

from .backbone import load_backbone
from .prompts import HandwrittenPrompts
from .shots import cross_entropy_step


class Adapter(nn.Module):
    """Two linear layers without bias, each with a ReLU, and a bottleneck of ``dim // reduction`` units between them."""

    def __init__(self, dim: int, reduction: int):
        super().__init__()
        hidden = dim // reduction
        down, up = nn.Linear(dim, hidden, bias=False), nn.Linear(hidden, dim, bias=False)
        self.fc = nn.Sequential(down, nn.ReLU(), up, nn.ReLU())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return A(f), before :func:`mix_features`, for image features f (images, dim); neither is normalised."""
        return self.fc(features)


def mix_features(features: torch.Tensor, adapted: torch.Tensor, ratio: float) -> torch.Tensor:
    """Return ``ratio`` times the adapted plus ``1 - ratio`` times the original features, all (images, dim)."""
    return ratio * adapted + (1 - ratio) * features


@TRAINER_REGISTRY.register()
class CLIPAdapter(TrainerX):
    """Trains an adapter of image features, and classifies by hand-written prompts."""

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add TRAINER.CLIPADAPTER, the config node of this method, with its defaults to ``cfg``, in place."""
        cfg.TRAINER.CLIPADAPTER = CfgNode()
        cfg.TRAINER.CLIPADAPTER.RATIO = 0.2  # weight of adapted features, from 0 (zero-shot) to 1; the authors' value
        cfg.TRAINER.CLIPADAPTER.REDUCTION = 4  # feature width / bottleneck width; the authors' value

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise :class:`UserError` for a template without ``{}`` or a RATIO outside 0 to 1."""
        check_template(cfg.DATASET.TEMPLATE, "DATASET.TEMPLATE")
        if not 0 <= (ratio := cfg.TRAINER.CLIPADAPTER.RATIO) <= 1:
            raise UserError(f"TRAINER.CLIPADAPTER.RATIO is {ratio}; it must be from 0 to 1")

    def build_model(self) -> None:
        """Build and register the adapter, encode the prompts, and make the image encoder the feature extractor."""
        cfg, self.backbone = self.cfg, load_backbone(self)
        prompts = HandwrittenPrompts(self)
        classifier = prompts.encode(self.backbone)
        self.class_features = classifier.float()
        dim, reduction = classifier.shape[1], cfg.TRAINER.CLIPADAPTER.REDUCTION
        if not 1 <= reduction <= dim:
            limits = f"from 1 to the features' width, {dim}"
            raise UserError(f"TRAINER.CLIPADAPTER.REDUCTION is {reduction}; it must be {limits}")
        self.model = Adapter(dim, reduction).to(self.device)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, cfg.MODEL.INIT_WEIGHTS)
        self.optim = build_optimizer(self.model, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("clip_adapter", self.model, self.optim, self.sched)
        self.feature_extractor = self.backbone.build_feature_extractor()
        self.provenance = {**self.backbone.report_parameters(self), **prompts.provenance}

    forward_backward = cross_entropy_step

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        """Return scaled logits (images, classes) for CLIP's image features (images, dim), not normalised."""
        features = input.float()
        mixed = mix_features(features, self.model(features), self.cfg.TRAINER.CLIPADAPTER.RATIO)
        return self.backbone.logits(mixed, self.class_features)
