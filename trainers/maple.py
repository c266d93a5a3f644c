"""MaPLe: multi-modal prompt learning, with deep prompts in both towers of a frozen CLIP.

Khattak et al., MaPLe: Multi-modal Prompt Learning, CVPR 2023, section 3.2. Each of the first J layers of the text
encoder has b learned tokens P_i. A linear coupling function F_i maps them to those of the image encoder. Both are
trained by cross-entropy over CLIP's scores.

As in the authors' code, the coupling functions of later layers begin with equal weights, and of the words CTX_INIT the
first N_CTX tokens are learned, the others fixed. Unlike there, fewer tokens than N_CTX are refused: that code learns
end and padding tokens then, or above N_CTX 4 ignores the words. ResNets, not in the paper: ``vlm.images.prompted``.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY

from .prompted_clip import DeepPromptLearner, DeepPromptTrainer
from .shots import cross_entropy_step


class MultiModalPromptLearner(DeepPromptLearner):
    """Prompts of the text encoder, and the coupling functions that map them to those of the image encoder."""

    def add_visual_prompts(self, node: CfgNode, width: int, layers: int) -> None:
        """Set the coupling functions: one for each layer with prompts, at most ``layers``."""
        self.proj, F_i = (nn.Linear(self.ctx.shape[1], width).to(self.ctx.device) for _ in range(2))
        deeper = range(1, min(node.PROMPT_DEPTH, layers))
        self.compound_prompt_projections = nn.ModuleList(copy.deepcopy(F_i) for _ in deeper)

    def visual_prompts(self) -> list[torch.Tensor]:
        """Return the prompts F_i(P_i), each (N_CTX, width), of the image encoder's layers."""
        couplings = [self.proj, *self.compound_prompt_projections]
        prompts = [self.ctx.float(), *self.compound_prompts_text]
        return [F_i(P_i) for F_i, P_i in zip(couplings, prompts, strict=False)]  # a ResNet has one coupling


@TRAINER_REGISTRY.register()
class MaPLe(DeepPromptTrainer):
    """Trains the text encoder's deep prompts and the functions that couple the image encoder's to them."""

    display_name, group, learner_class = "MaPLe", "towers", MultiModalPromptLearner
    forward_backward = cross_entropy_step

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add TRAINER.MAPLE, the config node of this method, with its defaults to ``cfg``, in place."""
        cfg.TRAINER.MAPLE = CfgNode()
        cfg.TRAINER.MAPLE.N_CTX = 2  # number of prompts of a layer, b in the paper
        cfg.TRAINER.MAPLE.CTX_INIT = "a photo of a"  # words; the first N_CTX tokens are learned; "": random vectors
        cfg.TRAINER.MAPLE.PROMPT_DEPTH = 9  # layers with prompts, J in the paper
        cfg.TRAINER.MAPLE.CHUNK = 8  # images encoded at a time in training, with the same result; 0: the batch
        cfg.TRAINER.MAPLE.PREC = "fp16"  # or fp32, amp, bf16
