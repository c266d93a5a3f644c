"""CoCoOp: conditional context optimization, CoOp with a context that depends on the image.

Zhou et al., Conditional Prompt Learning for Vision-Language Models, CVPR 2022, section 3.2. A small network, the
Meta-Net, maps the feature of an image to a vector. The vector is added to each context token, so every image has
different prompts (equation 3). Context and Meta-Net are trained by cross-entropy through the frozen text encoder.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY, TrainerX
from vlm.openai import CLIP
from vlm.similarity import normalize
from vlm.text.encoder import TextEncoder

from .backbone import load_backbone
from .context import check_context, register_prompt_learner
from .coop import PromptLearner
from .shots import cross_entropy_step

META_NET_REDUCTION = 16  # image feature width / hidden width of the Meta-Net, as in the paper (section 3.2)


class ConditionalPromptLearner(PromptLearner):
    """A context ``ctx`` (n_ctx, width), shared by all classes and followed by the class name, and the Meta-Net.

    ``ctx`` starts as the embeddings of the words ``ctx_init``, whatever ``n_ctx``, or as ``n_ctx`` noise vectors if "".
    """

    def __init__(self, classnames: Sequence[str], text_encoder: TextEncoder, n_ctx: int, ctx_init: str = ""):
        super().__init__(classnames, text_encoder, n_ctx, ctx_init)
        dim, width = text_encoder.embed_dim, self.ctx.shape[1]
        hidden = dim // META_NET_REDUCTION
        first, second = nn.Linear(dim, hidden), nn.Linear(hidden, width)
        layers = OrderedDict(linear1=first, relu=nn.ReLU(inplace=True), linear2=second)
        self.meta_net = nn.Sequential(layers).to(self.ctx)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # conditional on images
        """Return (images, n_ctx, width): ``ctx`` plus Meta-Net's vectors of unit image features (images, embed_dim)."""
        return self.ctx + self.meta_net(image_features.to(self.ctx.dtype))[:, None]


class ConditionalCLIP(nn.Module):
    """A frozen CLIP with conditional prompts (``node``: TRAINER.COCOOP) for its ``text_encoder`` (None: built here)."""

    def __init__(self, classnames: Sequence[str], clip: CLIP, node: CfgNode, text_encoder: TextEncoder | None = None):
        super().__init__()
        self.text_encoder = text_encoder or TextEncoder(clip)
        self.logit_scale = clip.logit_scale
        self.prompt_learner = ConditionalPromptLearner(classnames, self.text_encoder, node.N_CTX, node.CTX_INIT)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """Return scaled logits (images, classes) for image features (images, embed_dim) of any length."""
        image_features = normalize(image_features.to(self.text_encoder.dtype))
        learner = self.prompt_learner
        class_features = self.text_encoder.encode_contexts(
            learner(image_features), learner.fixed_embeddings, learner.layout
        )
        return self.logit_scale.exp() * torch.einsum("id,icd->ic", image_features, normalize(class_features))


@TRAINER_REGISTRY.register()
class CoCoOp(TrainerX):
    """Conditional context optimization: trains context and Meta-Net, with CLIP frozen."""

    group = "prompts"
    has_cosine_logits = True  # model_inference returns cosines of image and class features, times the logit scale

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add TRAINER.COCOOP, the config node of this method, with its defaults to ``cfg``, in place."""
        cfg.TRAINER.COCOOP = CfgNode()
        cfg.TRAINER.COCOOP.N_CTX = 16  # number of context tokens; CoOp's default
        cfg.TRAINER.COCOOP.CTX_INIT = ""  # words that initialise the context, such as "a photo of a"; they set N_CTX
        cfg.TRAINER.COCOOP.PREC = "fp16"  # or fp32, amp, bf16

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise ``UserError`` for values of TRAINER.COCOOP that cannot be used."""
        check_context(cfg.TRAINER.COCOOP, "TRAINER.COCOOP")

    def build_model(self) -> None:
        """Build the model, register its prompt learner, and make CLIP's image encoder the feature extractor."""
        node, classnames = self.cfg.TRAINER.COCOOP, self.dm.dataset.classnames
        self.backbone = load_backbone(self, node.PREC)
        self.model = ConditionalCLIP(classnames, self.backbone.clip, node, self.backbone.build_text_encoder())
        self.optim, self.sched = register_prompt_learner(self, self.model.prompt_learner, node.PREC)
        self.feature_extractor = self.backbone.build_feature_extractor()  # frozen encoder: batches hold features
        self.provenance = self.backbone.report_parameters(self)

    forward_backward = cross_entropy_step

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        """Return scaled logits (images, classes) for image features (images, embed_dim) of any length.

        In evaluation, the class features of a block of images take at most TEST.LOGITS_GB, or it has one image.
        """
        if torch.is_grad_enabled():
            return self.model(input)
        encoder = self.model.text_encoder
        images = int(1e9 * self.cfg.TEST.LOGITS_GB / (self.num_classes * encoder.embed_dim * encoder.dtype.itemsize))
        return torch.cat([self.model(block) for block in input.split(max(images, 1))])
