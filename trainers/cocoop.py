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
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from vlm.openai import CLIP
from vlm.similarity import normalize
from vlm.text.encoder import TextEncoder

from .backbone import load_backbone
from .context import check_context, register_prompt_learner
from .coop import PromptLearner

META_NET_REDUCTION = 16  # the Meta-Net's hidden layer has one sixteenth of the image feature's width


class ConditionalPromptLearner(PromptLearner):
    """The learned context ``ctx`` (n_ctx, width), which all classes share and their names follow, and the Meta-Net."""

    def __init__(self, classnames: Sequence[str], text_encoder: TextEncoder, n_ctx: int, ctx_init: str = ""):
        super().__init__(classnames, text_encoder, n_ctx, ctx_init)
        features, width = text_encoder.embed_dim, self.ctx.shape[1]
        first, second = (
            nn.Linear(features, features // META_NET_REDUCTION),
            nn.Linear(features // META_NET_REDUCTION, width),
        )
        layers = OrderedDict(linear1=first, relu=nn.ReLU(inplace=True), linear2=second)
        self.meta_net = nn.Sequential(layers).to(self.ctx)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """Return the context of each image, (images, n_ctx, width), by its feature (embed_dim,), of length 1."""
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
        class_features = self.text_encoder.encode_contexts(learner(image_features), learner.fixed, learner.layout)
        return self.logit_scale.exp() * torch.einsum("id,icd->ic", image_features, normalize(class_features))


@TRAINER_REGISTRY.register()
class CoCoOp(TrainerX):
    """Conditional context optimization."""

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        cfg.TRAINER.COCOOP = CfgNode()
        cfg.TRAINER.COCOOP.N_CTX = 16  # context tokens
        cfg.TRAINER.COCOOP.CTX_INIT = ""  # words to start from, such as "a photo of a"; they set N_CTX
        cfg.TRAINER.COCOOP.PREC = "fp16"

    def check_cfg(self, cfg: CfgNode) -> None:
        check_context(cfg.TRAINER.COCOOP, "TRAINER.COCOOP")

    def build_model(self) -> None:
        node, classnames = self.cfg.TRAINER.COCOOP, self.dm.dataset.classnames
        self.backbone = load_backbone(self, node.PREC)
        self.model = ConditionalCLIP(classnames, self.backbone.clip, node, self.backbone.text_encoder())
        register_prompt_learner(self, self.model.prompt_learner, node.PREC)
        self.feature_extractor = self.backbone.feature_extractor()  # the image encoder is frozen: batches hold features
        self.provenance = self.backbone.report(self)

    def forward_backward(self, batch: dict) -> dict[str, float]:
        image_features, label, _ = self.parse_batch_train(batch)
        with torch.autocast(self.device.type, torch.float16, enabled=self.scaler is not None):
            output = self.model(image_features)
            loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        """Return logits, of as many images at a time as their class features fit into TEST.LOGITS_GB."""
        encoder = self.model.text_encoder
        images = int(1e9 * self.cfg.TEST.LOGITS_GB / (self.num_classes * encoder.embed_dim * encoder.dtype.itemsize))
        return torch.cat([self.model(part) for part in input.split(max(images, 1))])
