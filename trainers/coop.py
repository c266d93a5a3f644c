"""CoOp: context optimization for the prompts of a frozen CLIP.

Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022, section 3. A prompt is
``[V]_1 ... [V]_M [CLASS]``. Its M context tokens are vectors in the space of word embeddings. All classes share them
(equation 2), or each class has its own (CSC). They are trained by cross-entropy over CLIP's scores (equation 3),
through the frozen text encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.utils import UserError, check_availability
from vlm.images.feature_store import FeatureStore
from vlm.openai import CLIP
from vlm.similarity import build_linear_head, compute_logits, normalize
from vlm.text.class_features import BLOCK_CLASSES, MIN_CACHED_PROMPTS, encode_classes
from vlm.text.classnames import clean_classnames, print_prompts
from vlm.text.encoder import TextEncoder
from vlm.text.language import print_language_notes
from vlm.text.prompt_table import CLASS_TOKEN_POSITIONS, PromptTable, count_tokens_before_name

from .backbone import load_backbone
from .class_tokens import hash_class_tokens, register_class_token_hooks
from .context import build_initial_context, check_context, list_context_words, register_prompt_learner
from .prompts import HandwrittenPrompts
from .sampled_softmax import SampledSoftmax
from .shots import end_step


class PromptLearner(PromptTable):
    """Prompts with a learned context ``ctx`` (n_ctx, width), or (classes, n_ctx, width) if ``csc`` (class-specific)."""

    def __init__(
        self, classnames: Sequence[str], text_encoder: TextEncoder, n_ctx: int, ctx_init="", csc=False, position="end"
    ):
        """Set ``ctx`` to words ``ctx_init``; if "", ``n_ctx`` noise vectors. Name ``position``: end, middle, front."""
        names = clean_classnames(text_encoder, classnames)
        print_language_notes(text_encoder.language, names)
        context = build_initial_context(text_encoder, n_ctx, ctx_init, len(names) if csc else None)
        super().__init__(text_encoder, names, context, position)
        words = list_context_words(text_encoder, ctx_init, context.shape[-2])
        n_before = count_tokens_before_name(len(words), position)
        print_prompts(len(names), lambda label: " ".join([*words[:n_before], names[label], *words[n_before:]]) + ".")
        self.ctx = nn.Parameter(context)
        self.checksum = hash_class_tokens(self)
        register_class_token_hooks(self)  # CoOp's checkpoints hold the class tokens too

    def forward(self) -> torch.Tensor:
        """Return the embeddings (rows, width) of all context and class tokens, to which ``index`` refers."""
        return self.table(self.ctx)


class CustomCLIP(nn.Module):
    """A frozen CLIP with learned prompts (``node``: TRAINER.COOP). ``text_encoder`` None: that of ``clip``."""

    def __init__(self, classnames: Sequence[str], clip: CLIP, node: CfgNode, text_encoder: TextEncoder | None = None):
        super().__init__()
        self.text_encoder = text_encoder or TextEncoder(clip)
        self.logit_scale = clip.logit_scale
        self.text_features: torch.Tensor | None = None  # cache of class_features() in evaluation
        options = node.N_CTX, node.CTX_INIT, node.CSC, node.CLASS_TOKEN_POSITION
        self.prompt_learner = PromptLearner(classnames, self.text_encoder, *options)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """Return scaled logits (images, classes) for image features (images, embed_dim) of any length."""
        text_features = self.text_encoder(self.prompt_learner(), self.prompt_learner.layout)
        return compute_logits(image_features, normalize(text_features), self.logit_scale)

    @torch.no_grad()
    def class_features(self, store: FeatureStore | None = None) -> torch.Tensor:
        """Return unit text features (classes, embed_dim); ``store`` caches over BLOCK_CLASSES of them, by context."""
        learner = self.prompt_learner
        if len(learner.lengths) <= BLOCK_CLASSES:
            return normalize(self.text_encoder(learner(), learner.layout))
        prompts = lambda classes: learner.select_classes(learner.ctx, classes)  # noqa: E731
        return normalize(encode_classes(len(learner.lengths), prompts, self.encode, store))

    def encode(self, table: torch.Tensor, index: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return features (n, embed_dim), not normalised, of n prompts from ``PromptTable.select_classes``."""
        return self.text_encoder(table, self.text_encoder.build_layout(index, lengths))


@TRAINER_REGISTRY.register()
class CoOp(TrainerX):
    """Context optimization: trains the context of the prompts, with CLIP frozen."""

    group = "prompts"
    training_keys: Sequence[str] = ("PREC", "CTX_INIT", "SAMPLED_CLASSES")
    uses_handwritten_prompts = False  # True: a subclass compares the learned prompts with them
    has_cosine_logits = True  # model_inference returns cosines of image and class features, times the logit scale

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add TRAINER.COOP, the config node of this method, with its defaults to ``cfg``, in place."""
        cfg.TRAINER.COOP = CfgNode()
        cfg.TRAINER.COOP.N_CTX = 16  # number of context tokens, M in the paper
        cfg.TRAINER.COOP.CTX_INIT = ""  # words that initialise the context, such as "a photo of a"; they set N_CTX
        cfg.TRAINER.COOP.CSC = False  # class-specific contexts
        cfg.TRAINER.COOP.CLASS_TOKEN_POSITION = "end"
        cfg.TRAINER.COOP.SAMPLED_CLASSES = 0  # classes in a training step's softmax, an approximation; 0: all, exact
        cfg.TRAINER.COOP.PREC = "fp16"  # or fp32, amp, bf16

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise ``UserError`` for values of TRAINER.COOP that cannot be used."""
        node = cfg.TRAINER.COOP
        check_context(node, "TRAINER.COOP")
        check_availability(node.CLASS_TOKEN_POSITION, CLASS_TOKEN_POSITIONS, "TRAINER.COOP.CLASS_TOKEN_POSITION")
        if node.SAMPLED_CLASSES and self.uses_handwritten_prompts:
            problem = f"{cfg.TRAINER.NAME} compares the prompts of all classes"
            raise UserError(f"TRAINER.COOP.SAMPLED_CLASSES goes with CoOp alone: {problem}; set it to 0")

    def build_model(self) -> None:
        """Build the model, register its prompt learner, and make CLIP's image encoder the feature extractor."""
        node, classnames = self.cfg.TRAINER.COOP, self.dm.dataset.classnames
        self.backbone = load_backbone(self, node.PREC)
        self.model = CustomCLIP(classnames, self.backbone.clip, node, self.backbone.build_text_encoder())
        self.optim, self.sched = register_prompt_learner(self, self.model.prompt_learner, node.PREC)
        self.feature_extractor = self.backbone.build_feature_extractor()  # frozen encoder: batches hold features
        self.provenance = self.backbone.report_parameters(self)
        self.sampled_softmax = SampledSoftmax.from_trainer(self)
        if self.uses_handwritten_prompts:
            prompts = HandwrittenPrompts(self)
            self.handwritten_features = prompts.encode(self.backbone)
            self.provenance = {**self.provenance, **prompts.provenance}

    def forward_backward(self, batch: dict) -> dict[str, float]:
        """Train on a batch by cross-entropy; return ``loss`` and ``acc`` (%)."""
        features, label, _ = self.parse_batch_train(batch)
        with torch.autocast(self.device.type, torch.float16, enabled=self.scaler is not None):
            if self.sampled_softmax:  # the new label counts the sampled classes
                loss, output, label = self.sampled_softmax(self.model, features, label, self.epoch, self.batch_idx)
            else:
                output = self.model(features)
                loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        return end_step(self, output, label, loss=loss)

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        """Set training or evaluation mode, and clear the cached text features."""
        super().set_model_mode(mode, names)
        self.model.text_features = None  # training changes the context

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        """Return scaled logits (images, classes) for image features (images, embed_dim) of any length."""
        if torch.is_grad_enabled():
            return self.model(input)
        if self.model.text_features is None:
            # Other runs reuse only the class features of the initial and of the final context.
            reusable = self.epoch in (0, self.max_epoch - 1) and len(self.dm.dataset.classnames) > MIN_CACHED_PROMPTS
            store = self.backbone.build_text_feature_store(self.model.text_encoder) if reusable else None
            self.model.text_features = self.model.class_features(store)
        return self.backbone.logits(input, self.model.text_features)

    def linear_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight (classes, embed_dim) and bias (classes,) that give the logits of unit image features."""
        return build_linear_head(self.model.class_features(), self.model.logit_scale)
