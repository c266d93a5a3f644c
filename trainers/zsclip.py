"""Zero-shot CLIP: classes are described by hand-written sentences (Radford et al. 2021, section 3.1)."""

from __future__ import annotations

import torch
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.utils import check_availability
from vlm.similarity import build_linear_head
from vlm.text.class_features import MIN_CACHED_PROMPTS
from vlm.text.templates import TEMPLATES, check_template
from vlm.text.zero_shot import build_zero_shot_classifier

from .backbone import load_backbone


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(TrainerX):
    """One sentence a class: DATASET.TEMPLATE with the class name in its ``{}``."""

    def check_cfg(self, cfg: CfgNode) -> None:
        check_template(cfg.DATASET.TEMPLATE, "DATASET.TEMPLATE")

    def build_model(self) -> None:
        self.backbone = load_backbone(self)
        templates = self.templates()
        print(f"Prompt ensembling (n={len(templates)})" if len(templates) > 1 else f'Prompt: "{templates[0]}"')
        encoder, classnames = self.backbone.text_encoder(), self.dm.dataset.classnames
        store = (
            self.backbone.text_feature_store(encoder) if len(classnames) * len(templates) > MIN_CACHED_PROMPTS else None
        )
        self.class_features = build_zero_shot_classifier(encoder, classnames, templates, store)
        self.feature_extractor = self.backbone.feature_extractor()
        self.provenance = self.backbone.report(self)

    def templates(self) -> list[str]:
        return [self.cfg.DATASET.TEMPLATE]

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        return self.backbone.logits(input, self.class_features)

    def linear_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        return build_linear_head(self.class_features, self.backbone.clip.logit_scale)


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """Several sentences a class, their features averaged: CoOp's seven selected ImageNet templates and the data set's
    own, or all eighty of CLIP (TRAINER.ZEROSHOTCLIP2.TEMPLATES select, all)."""

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        cfg.TRAINER.ZEROSHOTCLIP2 = CfgNode()
        cfg.TRAINER.ZEROSHOTCLIP2.TEMPLATES = "select"

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        check_availability(cfg.TRAINER.ZEROSHOTCLIP2.TEMPLATES, TEMPLATES, "TRAINER.ZEROSHOTCLIP2.TEMPLATES")

    def templates(self) -> list[str]:
        templates = [*TEMPLATES[self.cfg.TRAINER.ZEROSHOTCLIP2.TEMPLATES]]
        own = self.cfg.DATASET.TEMPLATE
        if self.cfg.DATASET.NAME not in ("ImageNet", "ImageNette") and own not in templates:
            templates.append(own)  # the seven were selected on ImageNet; elsewhere the data set's own joins them
        return templates
