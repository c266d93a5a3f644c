"""What MaPLe and PromptSRC share: a frozen CLIP with learned prompts in both towers, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.engine import TrainerX
from dassl.utils import UserError, check_at_least
from vlm.contrastive import encode_in_chunks
from vlm.images.prompted import PromptedImageEncoder, get_width_and_depth
from vlm.openai import CLIP, ModifiedResNet
from vlm.similarity import build_linear_head, normalize
from vlm.text.encoder import TextEncoder

from .backbone import load_backbone
from .context import check_context, register_prompt_learner
from .coop import PromptLearner


class DeepPromptLearner(PromptLearner):
    """A context with prompts for deeper layers: ``compound_prompts_text[l - 1]`` (n_ctx, width) for layer l, from 1.

    The context begins as the first tokens of CTX_INIT, whose others stay fixed; if it is "", as noise.
    """

    # A subclass defines both. The first takes the node, and the image encoder's width and number of layers.
    add_visual_prompts: Callable[[CfgNode, int, int], None]
    visual_prompts: Callable[[], list[torch.Tensor]]

    def __init__(self, classnames: Sequence[str], text_encoder: TextEncoder, visual: nn.Module, node: CfgNode):
        n_ctx, depth = (node.get(key, node.get(f"{key}_TEXT")) for key in ("N_CTX", "PROMPT_DEPTH"))
        super().__init__(classnames, text_encoder, n_ctx, node.CTX_INIT)
        if n_ctx > len(self.ctx):
            raise UserError(f'CTX_INIT "{node.CTX_INIT}" has {len(self.ctx)} tokens, below N_CTX {n_ctx}; add words')
        self.register_buffer("fixed_context", self.ctx[n_ctx:].detach().clone(), persistent=False)
        self.ctx = nn.Parameter(self.ctx[:n_ctx].detach().clone())
        self.compound_prompts_text = self.draw_prompts(depth - 1, n_ctx, self.ctx.shape[1])
        self.add_visual_prompts(node, *get_width_and_depth(visual))

    def table(self, context: torch.Tensor) -> torch.Tensor:
        """Return the table of ``PromptTable.table``, with the fixed tokens of CTX_INIT behind ``context``."""
        return super().table(torch.cat([context, self.fixed_context]))  # type: ignore[list-item]  # a buffer

    def draw_prompts(self, count: int, n_ctx: int, width: int) -> nn.ParameterList:
        """Return ``count`` random prompts (n_ctx, width); drawn on the CPU, so the device does not count."""
        prompts = torch.empty(count, n_ctx, width).normal_(std=0.02)  # the authors' deviation, as of CoOp's contexts
        return nn.ParameterList(prompts.to(self.ctx.device).unbind())


class PromptedCLIP(nn.Module):
    """A frozen CLIP with the prompts of ``prompt_learner``; it encodes ``chunk`` training images at a time (0: all)."""

    def __init__(self, clip: CLIP, text_encoder: TextEncoder, prompt_learner: DeepPromptLearner, chunk: int):
        super().__init__()
        self.text_encoder, self.prompt_learner, self.chunk = text_encoder, prompt_learner, chunk
        self.image_encoder = PromptedImageEncoder(clip.visual, prompt_learner.visual_prompts)
        self.logit_scale = clip.logit_scale
        self.text_features: torch.Tensor | None = None  # cache of class_features() in evaluation

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Return unit features (n, embed_dim) of images (n, 3, height, width)."""
        return normalize(encode_in_chunks(self.image_encoder, images, self.chunk * torch.is_grad_enabled()))

    def class_features(self) -> torch.Tensor:
        """Return unit text features (classes, embed_dim); without gradients, they are cached in ``text_features``."""
        if torch.is_grad_enabled() or self.text_features is None:
            learner = self.prompt_learner
            features = normalize(self.text_encoder(learner(), learner.layout, learner.compound_prompts_text))
            self.text_features = None if torch.is_grad_enabled() else features
            return features
        return self.text_features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return scaled logits (n, classes) of images (n, 3, height, width)."""
        return self.logit_scale.exp() * self.encode_images(images) @ self.class_features().t()


class DeepPromptTrainer(TrainerX):
    """Trains prompts of both towers; batches hold images, as the prompts change their features."""

    learner_class: type[DeepPromptLearner]
    training_keys: Sequence[str] = ("PREC", "CHUNK")  # fixed tokens of CTX_INIT are part of the prompts
    has_cosine_logits = True  # model_inference returns cosines of image and class features, times the logit scale

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise ``UserError`` for values of the method's config node that cannot be used."""
        path, node = f"TRAINER.{cfg.TRAINER.NAME.upper()}", cfg.TRAINER[cfg.TRAINER.NAME.upper()]
        minima = {"N_CTX": 1, "PROMPT_DEPTH": 1, "CHUNK": 0, "GPA_STD": 0.1}  # the last: a single epoch, in effect
        for key in node:
            for prefix, minimum in minima.items():
                check_at_least(node[key] if key.startswith(prefix) else minimum, minimum, f"{path}.{key}")
        check_context(CfgNode({"N_CTX": 1, **node}), path)

    def build_model(self) -> None:
        """Build the model and register its prompt learner."""
        node = self.cfg.TRAINER[self.cfg.TRAINER.NAME.upper()]
        self.backbone = load_backbone(self, node.PREC)
        clip, text_encoder = self.backbone.clip, self.backbone.build_text_encoder()
        check_layers(self.cfg, node, clip)
        learner = self.learner_class(self.dm.dataset.classnames, text_encoder, clip.visual, node)
        self.model = PromptedCLIP(clip, text_encoder, learner, node.CHUNK)
        self.optim, self.sched = register_prompt_learner(self, learner, node.PREC)
        self.provenance = self.backbone.report_parameters(self)

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        """Set training or evaluation mode, and clear the cached text features, which training changes."""
        super().set_model_mode(mode, names)
        self.model.text_features = None

    model_inference = TrainerX.model_inference  # the output of the model, for which has_cosine_logits is true

    def linear_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight and bias that give the logits of unit features of the image encoder with its prompts."""
        return build_linear_head(self.model.class_features(), self.model.logit_scale)


def check_layers(cfg: CfgNode, node: CfgNode, clip: CLIP) -> None:
    """Raise ``UserError`` unless ``clip`` is OpenAI's and has the layers for the depths in a method's ``node``."""
    backbone = cfg.MODEL.BACKBONE.WEIGHTS or cfg.MODEL.BACKBONE.NAME
    if type(clip) is not CLIP:
        problem = f"{cfg.TRAINER.NAME} has prompts inside OpenAI's architectures, and {backbone} has another"
        raise UserError(f"{problem}; CoOp, whose prompts are the text encoder's input, takes it")
    text, image = len(clip.transformer.resblocks), get_width_and_depth(clip.visual)[1]
    if isinstance(clip.visual, ModifiedResNet):
        print("Note: the image encoder is a ResNet; prompts go into its attention pool alone, whatever PROMPT_DEPTH")
        image = node.get("PROMPT_DEPTH_VISION", text)
    for key, layers in (("", min(text, image)), ("_TEXT", text), ("_VISION", image)):
        if (depth := node.get(f"PROMPT_DEPTH{key}", 1)) > layers:
            raise UserError(f"PROMPT_DEPTH{key} is {depth}; it must be at most {layers}, the layers of {backbone}")
