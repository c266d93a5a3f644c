"""CoCoOp: the learned context of CoOp, shifted for each image.

Zhou et al., Conditional Prompt Learning for Vision-Language Models, CVPR 2022, section 3.2. A small network, the
Meta-Net, maps the feature of an image to a vector that is added to each context token, so every image has prompts of
its own (equation 3). Context and Meta-Net are trained by cross-entropy through the frozen text encoder.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from vlm.openai import CLIP
from vlm.similarity import Best, normalize
from vlm.text_encoder import TextEncoder

from .coop import PromptLearner
from .prompt_trainer import PromptTrainer

SHRINK = 16  # the Meta-Net's hidden layer has one sixteenth of the image feature's width


class ConditionalPromptLearner(PromptLearner):
    """The learned context ``ctx`` (n_ctx, width), which all classes share and their names follow, and the Meta-Net."""

    def __init__(self, classnames: Sequence[str], text_encoder: TextEncoder, n_ctx: int, ctx_init: str = ""):
        super().__init__(classnames, text_encoder, n_ctx, ctx_init)
        features, width = text_encoder.embed_dim, self.ctx.shape[1]
        self.meta_net = nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(features, features // SHRINK),
                relu=nn.ReLU(inplace=True),
                linear2=nn.Linear(features // SHRINK, width),
            )
        ).to(self.ctx)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """The context of each image, (images, n_ctx, width).

        Args:
            image_features: (images, embed_dim), of length 1.
        """
        return self.ctx + self.meta_net(image_features.to(self.ctx.dtype))[:, None]


class ConditionalCLIP(nn.Module):
    """CLIP with a prompt learner that looks at the image in front of its text encoder."""

    def __init__(self, classnames: Sequence[str], clip: CLIP, node: CfgNode, text_encoder: TextEncoder | None = None):
        super().__init__()
        self.text_encoder = text_encoder or TextEncoder(clip)
        self.logit_scale = clip.logit_scale
        self.prompt_learner = ConditionalPromptLearner(classnames, self.text_encoder, node.N_CTX, node.CTX_INIT)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """Logits (images, classes) of image features (images, embed_dim)."""
        image_features = normalize(image_features.to(self.text_encoder.dtype))
        learner = self.prompt_learner
        class_features = self.text_encoder.encode_each(learner(image_features), learner.fixed, learner.layout)
        return self.logit_scale.exp() * torch.einsum("id,icd->ic", image_features, normalize(class_features))


@TRAINER_REGISTRY.register()
class CoCoOp(PromptTrainer):
    """Conditional context optimization."""

    node = "COCOOP"

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        cfg.TRAINER.COCOOP = CfgNode()
        cfg.TRAINER.COCOOP.N_CTX = 16  # context tokens
        cfg.TRAINER.COCOOP.CTX_INIT = ""  # words to start from, such as "a photo of a"; they set N_CTX
        cfg.TRAINER.COCOOP.PREC = "fp16"

    def model_inference(self, input: torch.Tensor) -> torch.Tensor | Best:
        """As many images at a time as their class features fit into TEST.LOGITS_GB, but at least one."""
        if torch.is_grad_enabled():
            return self.model(input)
        most, bytes_ = 1e9 * self.cfg.TEST.LOGITS_GB, self.num_classes * self.model.text_encoder.dtype.itemsize
        images = int(most / (bytes_ * self.model.text_encoder.embed_dim))
        parts = (self.model(part) for part in input.split(max(images, 1)))
        if len(input) * bytes_ <= most:
            return torch.cat([*parts])
        return Best(*map(torch.cat, zip(*(part.max(dim=1) for part in parts), strict=True)))

    def custom_clip(self, clip: CLIP) -> ConditionalCLIP:
        return ConditionalCLIP(self.dm.dataset.classnames, clip, self.cfg.TRAINER.COCOOP, self.text_encoder(clip))
