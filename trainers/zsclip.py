"""Zero-shot CLIP: classification by hand-written prompts, without training (Radford et al. 2021, section 3.1)."""

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
    """Classifies by one prompt for each class: DATASET.TEMPLATE with the class name in its ``{}``."""

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise :class:`UserError` for a template without ``{}``."""
        check_template(cfg.DATASET.TEMPLATE, "DATASET.TEMPLATE")

    def build_model(self) -> None:
        """Encode the prompts, and make CLIP's image encoder the feature extractor; no model is registered."""
        self.backbone = load_backbone(self)
        templates = self.templates()
        print(f"Prompt ensembling (n={len(templates)})" if len(templates) > 1 else f'Prompt: "{templates[0]}"')
        encoder, classnames = self.backbone.build_text_encoder(), self.dm.dataset.classnames
        use_cache = len(classnames) * len(templates) > MIN_CACHED_PROMPTS
        store = self.backbone.build_text_feature_store(encoder) if use_cache else None
        self.class_features = build_zero_shot_classifier(encoder, classnames, templates, store)
        self.feature_extractor = self.backbone.build_feature_extractor()
        self.provenance = self.backbone.report_parameters(self)

    def templates(self) -> list[str]:
        """Return the prompt templates, sentences with ``{}`` for the class name."""
        return [self.cfg.DATASET.TEMPLATE]

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        """Return scaled logits (images, classes) for image features (images, embed_dim) of any length."""
        return self.backbone.logits(input, self.class_features)

    def linear_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight (classes, embed_dim) and bias (classes,) that give the logits of unit image features."""
        return build_linear_head(self.class_features, self.backbone.clip.logit_scale)


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """Classifies by prompt ensembling: the class feature is the mean over the text features of several prompts.

    TRAINER.ZEROSHOTCLIP2.TEMPLATES chooses the templates: ``select`` for CoOp's seven selected ImageNet templates,
    ``all`` for the eighty templates of CLIP. On other data sets than ImageNet, DATASET.TEMPLATE is added.
    """

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add TRAINER.ZEROSHOTCLIP2, the config node of this method, with its defaults to ``cfg``, in place."""
        cfg.TRAINER.ZEROSHOTCLIP2 = CfgNode()
        cfg.TRAINER.ZEROSHOTCLIP2.TEMPLATES = "select"  # CoOp's default

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise :class:`UserError` for a template without ``{}`` or an unknown set of templates."""
        super().check_cfg(cfg)
        check_availability(cfg.TRAINER.ZEROSHOTCLIP2.TEMPLATES, TEMPLATES, "TRAINER.ZEROSHOTCLIP2.TEMPLATES")

    def templates(self) -> list[str]:
        """Return the templates that TEMPLATES names, and DATASET.TEMPLATE unless NAME is ImageNet or ImageNette."""
        templates = [*TEMPLATES[self.cfg.TRAINER.ZEROSHOTCLIP2.TEMPLATES]]
        template = self.cfg.DATASET.TEMPLATE
        if self.cfg.DATASET.NAME not in ("ImageNet", "ImageNette") and template not in templates:
            templates.append(template)  # CoOp selected the seven on ImageNet
        return templates
