"""CoOp: the words around a class name are learned, CLIP stays as it is.

Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022, section 3. A prompt is
``[V]_1 ... [V]_M [CLASS]``, where the M context tokens are vectors in the space of word embeddings, shared by all
classes (equation 2) or one set a class. They are trained by cross-entropy over CLIP's scores (equation 3), through
the frozen text encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.utils import check_availability
from vlm.images.feature_store import FeatureStore
from vlm.openai import CLIP
from vlm.similarity import build_linear_head, compute_logits, normalize
from vlm.text.class_features import BLOCK_CLASSES, MIN_CACHED_PROMPTS, encode_classes
from vlm.text.classnames import clean_classnames
from vlm.text.encoder import TextEncoder
from vlm.text.prompt_table import CLASS_TOKEN_POSITIONS, PromptTable

from .backbone import load_backbone
from .class_tokens import register_class_token_hooks
from .context import build_initial_context, check_context, register_prompt_learner
from .sampled_softmax import SampledSoftmax


class PromptLearner(PromptTable):
    """The context ``ctx`` (n_ctx, width), or (classes, n_ctx, width) with class-specific contexts (CSC)."""

    def __init__(
        self, classnames: Sequence[str], text_encoder: TextEncoder, n_ctx: int, ctx_init="", csc=False, position="end"
    ):
        """
        Args:
            ctx_init: words to start from; they set ``n_ctx``.
            position: of the class name among the context tokens.
        """
        names = clean_classnames(text_encoder, classnames)
        context = build_initial_context(text_encoder, n_ctx, ctx_init, len(names) if csc else None)
        super().__init__(text_encoder, names, context, position)
        self.ctx = nn.Parameter(context)
        register_class_token_hooks(self)  # in its checkpoints, as the original does

    def forward(self) -> torch.Tensor:
        """Return the table of vectors (rows, width) that the prompts are made of."""
        return self.table(self.ctx)


class CustomCLIP(nn.Module):
    """CLIP with a prompt learner in front of its text encoder."""

    text_features: torch.Tensor | None = None  # of the prompts as they are, while nothing is trained

    def __init__(self, classnames: Sequence[str], clip: CLIP, node: CfgNode, text_encoder: TextEncoder | None = None):
        super().__init__()
        self.text_encoder = text_encoder or TextEncoder(clip)
        self.logit_scale = clip.logit_scale
        values = node.N_CTX, node.CTX_INIT, node.CSC, node.CLASS_TOKEN_POSITION
        self.prompt_learner = PromptLearner(classnames, self.text_encoder, *values)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, classes) of image features (batch, embed_dim)."""
        text_features = self.text_encoder(self.prompt_learner(), self.prompt_learner.layout)
        return compute_logits(image_features, normalize(text_features), self.logit_scale)

    @torch.no_grad()
    def class_features(self, store: FeatureStore | None = None) -> torch.Tensor:
        """Return text features (classes, embed_dim) of length 1; of many classes, reuse those in ``store``."""
        learner = self.prompt_learner
        if len(learner.lengths) <= BLOCK_CLASSES:
            return normalize(self.text_encoder(learner(), learner.layout))
        prompts = lambda classes: learner.select_classes(learner.ctx, classes)  # noqa: E731
        return normalize(encode_classes(len(learner.lengths), prompts, self.encode, store))

    def encode(self, table: torch.Tensor, index: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return self.text_encoder(table, self.text_encoder.layout(index, lengths))


@TRAINER_REGISTRY.register()
class CoOp(TrainerX):
    """Context optimization."""

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        cfg.TRAINER.COOP = CfgNode()
        cfg.TRAINER.COOP.N_CTX = 16  # context tokens
        cfg.TRAINER.COOP.CTX_INIT = ""  # words to start from, such as "a photo of a"; they set N_CTX
        cfg.TRAINER.COOP.CSC = False  # class-specific contexts
        cfg.TRAINER.COOP.CLASS_TOKEN_POSITION = "end"
        cfg.TRAINER.COOP.SAMPLED_CLASSES = 0  # in the softmax of a training step, an approximation; 0: all, exact
        cfg.TRAINER.COOP.PREC = "fp16"  # or fp32, amp, bf16

    def check_cfg(self, cfg: CfgNode) -> None:
        check_context(cfg.TRAINER.COOP, "TRAINER.COOP")
        check_availability(
            cfg.TRAINER.COOP.CLASS_TOKEN_POSITION, CLASS_TOKEN_POSITIONS, "TRAINER.COOP.CLASS_TOKEN_POSITION"
        )

    def build_model(self) -> None:
        node, classnames = self.cfg.TRAINER.COOP, self.dm.dataset.classnames
        self.backbone = load_backbone(self, node.PREC)
        self.model = CustomCLIP(classnames, self.backbone.clip, node, self.backbone.text_encoder())
        register_prompt_learner(self, self.model.prompt_learner, node.PREC)  # optimizer, schedule; a scaler for amp
        self.feature_extractor = self.backbone.feature_extractor()  # the image encoder is frozen: batches hold features
        self.provenance = self.backbone.report(self)
        self.sampled_softmax = SampledSoftmax.of(self)

    def forward_backward(self, batch: dict) -> dict[str, float]:
        image_features, label, _ = self.parse_batch_train(batch)
        with torch.autocast(self.device.type, torch.float16, enabled=self.scaler is not None):
            if self.sampled_softmax:  # label: among the sampled classes
                inputs = self.model, image_features, label, self.epoch, self.batch_idx
                loss, output, label = self.sampled_softmax(*inputs)
            else:
                output = self.model(image_features)
                loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        super().set_model_mode(mode, names)
        self.model.text_features = None  # the prompts may change, or have changed

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            return self.model(input)
        if self.model.text_features is None:
            # Those of the epochs on the way are of no use to other runs.
            reusable = self.epoch in (0, self.max_epoch - 1) and len(self.dm.dataset.classnames) > MIN_CACHED_PROMPTS
            store = self.backbone.text_feature_store(self.model.text_encoder) if reusable else None
            self.model.text_features = self.model.class_features(store)
        return self.backbone.logits(input, self.model.text_features)

    def linear_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        return build_linear_head(self.model.class_features(), self.model.logit_scale)
