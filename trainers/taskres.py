"""TaskRes: learns a residual of each class's text feature, with CLIP and the text features frozen.

Yu et al., Task Residual for Tuning Vision-Language Models, CVPR 2023, section 3.2. The class weights are
``t' = t + alpha x``, with text features t, a fixed alpha, and the task residual x, which starts at zero and is trained
by cross-entropy over CLIP's logits, the cosines of image features and t'. As in the authors' code, t has about the
length of CLIP's text features, not 1 (TEXT_NORM in shots.py), so that a step of x turns t' less.
"""

from __future__ import annotations

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.utils import UserError
from vlm.similarity import build_linear_head, normalize

from . import shots


@TRAINER_REGISTRY.register()
class TaskRes(TrainerX):
    """Trains the task residual, classes * dim parameters. A class without shots learns from those of the others."""

    display_name = "TaskRes"
    group = "features"
    has_cosine_logits = True  # model_inference returns cosines of image and class features, times the logit scale

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add TRAINER.TASKRES, the config node of this method, with its defaults to ``cfg``, in place."""
        cfg.TRAINER.TASKRES = CfgNode()
        cfg.TRAINER.TASKRES.ALPHA = 0.5  # weight of the residual; the authors' value, but for 1 on Flowers102

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise ``UserError`` for an ALPHA of 0 or less."""
        if (alpha := cfg.TRAINER.TASKRES.ALPHA) <= 0:
            hint = "--trainer ZeroshotCLIP: no residual"
            raise UserError(f"TRAINER.TASKRES.ALPHA is {alpha}; it must be above 0 ({hint})")

    def build_model(self) -> None:
        """Encode the prompts, and register a residual of zeros."""
        self.backbone, t = shots.load_zero_shot(self)
        self.t = shots.TEXT_NORM * t
        shots.register_feature_model(self, self.backbone, "taskres", nn.ParameterDict({"x": torch.zeros_like(t)}))

    forward_backward = shots.cross_entropy_step

    def class_weights(self) -> torch.Tensor:
        """Return the class weights t' (classes, dim) at length 1."""
        return normalize(self.t + self.cfg.TRAINER.TASKRES.ALPHA * self.model.x)

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        """Return scaled logits (images, classes) for image features (images, dim) of any length."""
        return self.backbone.logits(input, self.class_weights())

    def linear_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight (classes, dim) and bias (classes,) that give the logits of unit image features."""
        return build_linear_head(self.class_weights(), self.backbone.clip.logit_scale)
