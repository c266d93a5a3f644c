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

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError
from vlm.openai import CLIP
from vlm.similarity import logits
from vlm.zeroshot import check_template, describe_classes

from .feature_trainer import FeatureTrainer


class Adapter(nn.Module):
    """Features (images, dim) -> features (images, dim), through dim / ``reduction`` hidden ones."""

    def __init__(self, dim: int, reduction: int):
        super().__init__()
        hidden = dim // reduction
        self.fc = nn.Sequential(
            nn.Linear(dim, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, dim, bias=False), nn.ReLU()
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc(features)


def mix(features: torch.Tensor, adapted: torch.Tensor, ratio: float) -> torch.Tensor:
    """``ratio`` of the adapted features, the rest of the original ones, both (images, dim)."""
    return ratio * adapted + (1 - ratio) * features


@TRAINER_REGISTRY.register()
class CLIPAdapter(FeatureTrainer):
    """An adapter of image features; classes are described by DATASET.TEMPLATE."""

    head_name = "clip_adapter"
    takes_weights = True

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        cfg.TRAINER.CLIPADAPTER = CfgNode()
        cfg.TRAINER.CLIPADAPTER.RATIO = 0.2  # of adapted features in the mixture, from 0 (zero-shot) to 1
        cfg.TRAINER.CLIPADAPTER.REDUCTION = 4  # of the width in the bottleneck

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        check_template(cfg.DATASET.TEMPLATE, "DATASET.TEMPLATE")
        if not 0 <= (ratio := cfg.TRAINER.CLIPADAPTER.RATIO) <= 1:
            raise UserError(f"TRAINER.CLIPADAPTER.RATIO is {ratio}; it goes from 0 to 1")

    def head(self, clip: CLIP) -> Adapter:
        text = describe_classes(self.text_encoder(clip), self.dm.dataset.classnames, [self.cfg.DATASET.TEMPLATE])
        self.class_features, self.logit_scale = text.float(), clip.logit_scale
        dim, reduction = text.shape[1], self.cfg.TRAINER.CLIPADAPTER.REDUCTION
        if not 1 <= reduction <= dim:
            raise UserError(
                f"TRAINER.CLIPADAPTER.REDUCTION is {reduction}; it goes from 1 to the features' width, {dim}"
            )
        return Adapter(dim, reduction)

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        features = input.float()
        mixed = mix(features, self.model(features), self.cfg.TRAINER.CLIPADAPTER.RATIO)
        return logits(mixed, self.class_features, self.logit_scale)
