"""CLIP-Adapter: a small network changes the image feature a little, the prompt stays a hand-written one.

Gao et al., CLIP-Adapter: Better Vision-Language Models with Feature Adapters, 2021, section 3.2. A bottleneck of two
linear layers, ``A(f) = ReLU(f W1) W2``, is mixed with the feature that goes into it,
``f* = ratio * A(f) + (1 - ratio) * f``, and trained by cross-entropy over CLIP's scores. As in the authors' code, the
second layer has a ReLU too, and features come as CLIP gives them, not brought to length 1; checkpoints have its names.
"""

from __future__ import annotations

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UserError, load_pretrained_weights
from vlm.text.templates import check_template
from vlm.text.zero_shot import build_zero_shot_classifier

from .backbone import load_backbone
from .shots import cross_entropy_step


class Adapter(nn.Module):
    """Features (images, dim) -> features (images, dim), through dim / ``reduction`` hidden ones."""

    def __init__(self, dim: int, reduction: int):
        super().__init__()
        hidden = dim // reduction
        first, second = nn.Linear(dim, hidden, bias=False), nn.Linear(hidden, dim, bias=False)
        self.fc = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc(features)


def mix_features(features: torch.Tensor, adapted: torch.Tensor, ratio: float) -> torch.Tensor:
    """``ratio`` of the adapted features, the rest of the original ones, both (images, dim)."""
    return ratio * adapted + (1 - ratio) * features


@TRAINER_REGISTRY.register()
class CLIPAdapter(TrainerX):
    """An adapter of image features; classes are described by DATASET.TEMPLATE."""

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        cfg.TRAINER.CLIPADAPTER = CfgNode()
        cfg.TRAINER.CLIPADAPTER.RATIO = 0.2  # of adapted features in the mixture, from 0 (zero-shot) to 1
        cfg.TRAINER.CLIPADAPTER.REDUCTION = 4  # of the width in the bottleneck

    def check_cfg(self, cfg: CfgNode) -> None:
        check_template(cfg.DATASET.TEMPLATE, "DATASET.TEMPLATE")
        if not 0 <= (ratio := cfg.TRAINER.CLIPADAPTER.RATIO) <= 1:
            raise UserError(f"TRAINER.CLIPADAPTER.RATIO is {ratio}; it goes from 0 to 1")

    def build_model(self) -> None:
        cfg, classnames = self.cfg, self.dm.dataset.classnames
        self.backbone = load_backbone(self)
        text = build_zero_shot_classifier(self.backbone.text_encoder(), classnames, [cfg.DATASET.TEMPLATE])
        self.class_features = text.float()
        dim, reduction = text.shape[1], cfg.TRAINER.CLIPADAPTER.REDUCTION
        if not 1 <= reduction <= dim:
            limits = f"from 1 to the features' width, {dim}"
            raise UserError(f"TRAINER.CLIPADAPTER.REDUCTION is {reduction}; it goes {limits}")
        self.model = Adapter(dim, reduction).to(self.device)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, cfg.MODEL.INIT_WEIGHTS)
        self.optim = build_optimizer(self.model, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("clip_adapter", self.model, self.optim, self.sched)
        self.feature_extractor = self.backbone.feature_extractor()
        self.provenance = self.backbone.report(self)

    forward_backward = cross_entropy_step  # by the cross-entropy of the logits below

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        features = input.float()
        mixed = mix_features(features, self.model(features), self.cfg.TRAINER.CLIPADAPTER.RATIO)
        return self.backbone.logits(mixed, self.class_features)
