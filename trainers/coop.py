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

from dassl.engine import TRAINER_REGISTRY
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UserError, check_availability, load_pretrained_weights
from vlm.layout import Layout
from vlm.load import PRECISIONS
from vlm.openai import CLIP
from vlm.prompts import readable, token_count, tokenize
from vlm.similarity import logits, normalize
from vlm.text_encoder import TextEncoder, text_lengths

from .clip_trainer import CLIPTrainer

POSITIONS = ("end", "middle", "front")  # of the class name among the context tokens


class PromptLearner(nn.Module):
    """The learned context ``ctx`` and the fixed tokens around it.

    ``ctx`` has shape (n_ctx, width), or (classes, n_ctx, width) with class-specific contexts. What ``forward`` returns
    is a table of vectors: the context tokens, then the embeddings of all fixed tokens, each once. ``index`` (classes,
    77) names the row of it that stands at each position of each prompt, ``layout`` what of that is to be computed.
    """

    def __init__(self, classnames: Sequence[str], text_encoder: TextEncoder, node: CfgNode):
        """``node`` is ``cfg.TRAINER.COOP``: N_CTX, CTX_INIT, CSC, CLASS_TOKEN_POSITION."""
        super().__init__()
        names = [readable(name) for name in classnames]
        context = self._initial_context(text_encoder, len(names), node)
        self.ctx = nn.Parameter(context)
        n_ctx = context.shape[-2]
        print(f"Number of context words (tokens): {n_ctx}")

        # "X" keeps a place for each context token; the class name and what follows it are CLIP's own words.
        tokens = tokenize([" ".join(["X"] * n_ctx + [name]) + "." for name in names])
        context_rows = torch.arange(context[..., 0].numel()).view(context.shape[:-1])
        fixed, rows = tokens.unique(return_inverse=True)
        rows += context_rows.numel()
        rows[:, 1 : 1 + n_ctx] = context_rows
        order = [_order(n_ctx, token_count(name), node.CLASS_TOKEN_POSITION, tokens.shape[1]) for name in names]
        device = context.device
        self.register_buffer("fixed", text_encoder.embed(fixed.to(device)).detach(), persistent=False)
        self.rows = rows.to(device)  # the class name last, as in ``tokens``
        self.index = rows.gather(1, torch.tensor(order)).to(device)
        self.layout = Layout.of(self.index, text_lengths(tokens).to(device))
        self.register_state_dict_post_hook(_add_class_tokens)
        self.register_load_state_dict_pre_hook(_drop_class_tokens)

    @staticmethod
    def _initial_context(text_encoder: TextEncoder, classes: int, node: CfgNode) -> torch.Tensor:
        """The embeddings of the words CTX_INIT, or Gaussian noise (standard deviation 0.02)."""
        table = text_encoder.token_embedding.weight
        if node.CTX_INIT:
            words = readable(node.CTX_INIT)
            context = text_encoder.embed(tokenize([words]).to(table.device))[0, 1 : 1 + token_count(words)]
            context = context.expand(classes, -1, -1) if node.CSC else context
        else:
            print("Initializing class-specific contexts" if node.CSC else "Initializing a generic context")
            words = " ".join(["X"] * node.N_CTX)
            shape = (classes, node.N_CTX, table.shape[1]) if node.CSC else (node.N_CTX, table.shape[1])
            # Drawn on the CPU, so that a seed means the same context everywhere.
            context = torch.empty(shape, dtype=text_encoder.dtype).normal_(std=0.02).to(table.device)
        print(f'Initial context: "{words}"')
        return context.clone()

    def forward(self) -> torch.Tensor:
        """The table of vectors (rows, width)."""
        return torch.cat([self.ctx.flatten(0, -2), self.fixed])

    # Embeddings of what stands before and behind the context, for all classes (classes, 1 or more, width).
    token_prefix = property(lambda self: self()[self.rows[:, :1]].detach())
    token_suffix = property(lambda self: self()[self.rows[:, 1 + self.ctx.shape[-2] :]].detach())


def _order(n_ctx: int, n_name: int, position: str, length: int) -> list[int]:
    """Which position of ``[start, context, name, rest]`` comes at each place of the prompt."""
    start, context = [0], list(range(1, 1 + n_ctx))
    name = list(range(1 + n_ctx, 1 + n_ctx + n_name))
    rest = list(range(1 + n_ctx + n_name, length))
    half = n_ctx // 2
    return {
        "end": start + context + name + rest,
        "middle": start + context[:half] + name + context[half:] + rest,
        "front": start + name + context + rest,
    }[position]


CLASS_TOKENS = ("token_prefix", "token_suffix")


def _add_class_tokens(module: PromptLearner, state_dict: dict, prefix: str, *_) -> None:
    """The original's checkpoints have the words of the classes in them."""
    state_dict.update({prefix + name: getattr(module, name) for name in CLASS_TOKENS})


def _drop_class_tokens(module: PromptLearner, state_dict: dict, prefix: str, *_) -> None:
    """They are those of the classes it was trained on; the context goes with other classes as well."""
    for name in CLASS_TOKENS:
        state_dict.pop(prefix + name, None)


class CustomCLIP(nn.Module):
    """CLIP with a prompt learner in front of its text encoder."""

    def __init__(self, classnames: Sequence[str], clip: CLIP, node: CfgNode, text_encoder: TextEncoder | None = None):
        super().__init__()
        self.text_encoder = text_encoder or TextEncoder(clip)
        self.logit_scale = clip.logit_scale
        self.prompt_learner = PromptLearner(classnames, self.text_encoder, node)

    def class_features(self) -> torch.Tensor:
        """Text features (classes, embed_dim) of length 1."""
        return normalize(self.text_encoder(self.prompt_learner(), self.prompt_learner.layout))

    def forward(self, image_features: torch.Tensor, class_features: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (batch, classes) of image features (batch, embed_dim)."""
        class_features = self.class_features() if class_features is None else class_features
        return logits(image_features, class_features, self.logit_scale)


@TRAINER_REGISTRY.register()
class CoOp(CLIPTrainer):
    """Context optimization."""

    frozen_image_encoder = True

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        cfg.TRAINER.COOP = CfgNode()
        cfg.TRAINER.COOP.N_CTX = 16  # context tokens
        cfg.TRAINER.COOP.CTX_INIT = ""  # words to start from, such as "a photo of a"; they set N_CTX
        cfg.TRAINER.COOP.CSC = False  # class-specific contexts
        cfg.TRAINER.COOP.CLASS_TOKEN_POSITION = "end"
        cfg.TRAINER.COOP.PREC = "fp16"

    def check_cfg(self, cfg: CfgNode) -> None:
        node = cfg.TRAINER.COOP
        check_availability(node.PREC, PRECISIONS, "TRAINER.COOP.PREC")
        check_availability(node.CLASS_TOKEN_POSITION, POSITIONS, "TRAINER.COOP.CLASS_TOKEN_POSITION")
        if not node.CTX_INIT and node.N_CTX < 1:
            raise UserError(f"TRAINER.COOP.N_CTX is {node.N_CTX}; there must be at least 1 context token")
        if node.CTX_INIT and not token_count(readable(node.CTX_INIT)):
            raise UserError(f'TRAINER.COOP.CTX_INIT "{node.CTX_INIT}" has no words to start from')

    def build_model(self) -> None:
        node = self.cfg.TRAINER.COOP
        clip = self.load_clip(node.PREC)
        print("Building custom CLIP")
        self.model = CustomCLIP(self.dm.dataset.classnames, clip, node, self.text_encoder(clip))
        print("Turning off gradients in both the image and the text encoder")
        learner = self.model.prompt_learner
        if self.cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(learner, self.cfg.MODEL.INIT_WEIGHTS)
        self.optim = build_optimizer(learner, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("prompt_learner", learner, self.optim, self.sched)
        self.amp = node.PREC == "amp" and self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler("cuda") if self.amp else None
        self.class_features = None  # while nothing is evaluated
        self.report_parameters()

    def forward_backward(self, batch: dict) -> dict[str, float]:
        image_features, label = self.parse_batch_train(batch)
        with torch.autocast(self.device.type, torch.float16, enabled=self.amp):
            output = self.model(image_features)
            loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        self.class_features = self.model.class_features()  # once: the prompts stay as they are while a set is evaluated
        try:
            return super().test(split)
        finally:
            self.class_features = None

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        return self.model(input, self.class_features)
