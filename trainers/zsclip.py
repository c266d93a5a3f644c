"""Zero-shot CLIP: classification by hand-written prompts, without training (Radford et al. 2021, section 3.1)."""

from __future__ import annotations

import torch
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.utils import UserError, check_availability
from vlm.similarity import build_linear_head
from vlm.text.templates import TEMPLATES, list_templates

from .backbone import load_backbone
from .prompts import HandwrittenPrompts


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(TrainerX):
    """Classifies by hand-written prompts: DATASET.TEMPLATE with the class name in its ``{}``, or DESCRIPTIONS.

    Of several prompts (a list of templates, or a class's sentences in DATASET.DESCRIPTIONS), the features are averaged.
    """

    display_name = "Zero-shot CLIP"
    group = "training-free"
    has_cosine_logits = True  # model_inference returns cosines of image and class features, times the logit scale

    def build_model(self) -> None:
        """Encode the prompts, and make CLIP's image encoder the feature extractor; no model is registered."""
        self.backbone = load_backbone(self)
        prompts = HandwrittenPrompts(self, self.templates())
        self.class_features = prompts.encode(self.backbone)
        self.feature_extractor = self.backbone.build_feature_extractor()
        self.provenance = {**self.backbone.report_parameters(self), **prompts.provenance}

    def templates(self) -> list[str]:
        """Return the prompt templates, sentences with ``{}`` for the class name."""
        return list_templates(self.cfg.DATASET.TEMPLATE)

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        """Return scaled logits (images, classes) for image features (images, embed_dim) of any length."""
        return self.backbone.logits(input, self.class_features)

    def linear_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight (classes, embed_dim) and bias (classes,) that give the logits of unit image features."""
        return build_linear_head(self.class_features, self.backbone.clip.logit_scale)


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """Classifies by prompt ensembling: the class feature is the mean over the text features of several prompts.

    TRAINER.ZEROSHOTCLIP2.TEMPLATES chooses the templates: ``all`` for the eighty templates of CLIP; ``select`` for
    CoOp's seven selected ImageNet templates, to which DATASET.TEMPLATE is added on other data sets than ImageNet.
    """

    display_name = "Zero-shot ensemble"
    group = "training-free"

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add TRAINER.ZEROSHOTCLIP2, the config node of this method, with its defaults to ``cfg``, in place."""
        cfg.TRAINER.ZEROSHOTCLIP2 = CfgNode()
        cfg.TRAINER.ZEROSHOTCLIP2.TEMPLATES = "select"  # CoOp's default

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise ``UserError`` for an unknown set of templates, or DESCRIPTIONS."""
        if cfg.DATASET.DESCRIPTIONS:
            raise UserError("ZeroshotCLIP2 averages templates; DATASET.DESCRIPTIONS goes with ZeroshotCLIP")
        check_availability(cfg.TRAINER.ZEROSHOTCLIP2.TEMPLATES, TEMPLATES, "TRAINER.ZEROSHOTCLIP2.TEMPLATES")

    def templates(self) -> list[str]:
        """Return the templates that TEMPLATES names; with ``select``, also DATASET.TEMPLATE if not on ImageNet."""
        choice = self.cfg.TRAINER.ZEROSHOTCLIP2.TEMPLATES
        templates = [*TEMPLATES[choice]]
        if choice == "select" and self.cfg.DATASET.NAME not in ("ImageNet", "ImageNette"):
            templates += super().templates()  # CoOp selected the seven on ImageNet
        return list(dict.fromkeys(templates))
