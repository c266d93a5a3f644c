"""Functions that the prompt-learning methods share: config checks, the initial context, registration for training."""

from __future__ import annotations

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode

from dassl.engine import TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UserError, check_availability, load_pretrained_weights
from vlm.clip.load import PRECISIONS
from vlm.text.encoder import TextEncoder
from vlm.text.nearest_words import decode_token
from vlm.text.templates import clean_classname
from vlm.text.tokenizer import count_tokens

MAX_CONTEXT_TOKENS = 512  # the longest prompts, Chinese-CLIP's, have as many tokens


def check_context(node: CfgNode, name: str) -> None:
    """Raise ``UserError`` for unusable N_CTX, CTX_INIT or PREC in a config node, whose path is ``name``."""
    check_availability(node.PREC, PRECISIONS, f"{name}.PREC")
    if "{" in node.CTX_INIT or "}" in node.CTX_INIT:
        hint = "leave out {}: the class name follows the context"
        raise UserError(f'{name}.CTX_INIT "{node.CTX_INIT}" has braces; {hint}')
    if not node.CTX_INIT and node.N_CTX < 1:
        raise UserError(f"{name}.N_CTX is {node.N_CTX}; there must be at least 1 context token")
    if node.CTX_INIT and not count_tokens(clean_classname(node.CTX_INIT)):
        raise UserError(f'{name}.CTX_INIT "{node.CTX_INIT}" has no words; give some, or "" for random vectors')


def build_initial_context(
    text_encoder: TextEncoder, n_ctx: int, ctx_init: str, num_classes: int | None = None
) -> torch.Tensor:
    """Return the embeddings of the words ``ctx_init``; if it is "", Gaussian noise (standard deviation 0.02).

    Args:
        n_ctx: number of context tokens of the noise; words have as many as they have tokens.
        num_classes: number of class-specific contexts; None for one context that all classes share.

    Returns:
        (n_ctx, width), or (num_classes, n_ctx, width).
    """
    token_embeddings, dtype = text_encoder.token_embedding.weight, text_encoder.dtype
    # With the 8 significant bits of bfloat16, a context would not change by a small optimizer step.
    dtype = torch.float32 if dtype == torch.bfloat16 else dtype
    words = clean_classname(ctx_init) if ctx_init else ""
    n_ctx = text_encoder.count_tokens(words) if words else n_ctx
    if n_ctx > MAX_CONTEXT_TOKENS:
        raise UserError(f"there are {n_ctx:,} context tokens (N_CTX); no prompt has more than {MAX_CONTEXT_TOKENS}")
    class_shape = [] if num_classes is None else [num_classes]
    if words:
        tokens = text_encoder.tokenize([words]).to(token_embeddings.device)
        context = text_encoder.embed(tokens)[0, 1 : 1 + n_ctx].to(dtype).expand(*class_shape, -1, -1)
    else:
        print("Initializing class-specific contexts" if class_shape else "Initializing a generic context")
        words = " ".join(["X"] * n_ctx)
        shape = [*class_shape, n_ctx, token_embeddings.shape[1]]
        # Drawn on the CPU, so that a seed gives the same context on every device.
        context = torch.empty(shape, dtype=dtype).normal_(std=0.02).to(token_embeddings.device)
    print(f'Initial context: "{words}"')
    print(f"Number of context words (tokens): {n_ctx}")
    return context.clone()


def list_context_words(text_encoder: TextEncoder, ctx_init: str, n_ctx: int) -> list[str]:
    """Return the initial context's ``n_ctx`` tokens as text, for the log: those of ``ctx_init``, or "X" for noise."""
    if not ctx_init:
        return ["X"] * n_ctx
    tokens = text_encoder.tokenize([clean_classname(ctx_init)])[0, 1 : 1 + n_ctx]
    return [decode_token(text_encoder, token) for token in tokens.tolist()]


def register_prompt_learner(trainer: TrainerX, learner, precision: str) -> tuple[Optimizer, LRScheduler]:
    """Register ``learner`` with a new optimizer and learning-rate schedule, and return both.

    ``learner`` is a ``trainers.coop.PromptLearner``. It first loads MODEL.INIT_WEIGHTS, if set.
    FORCE_RESUME allows checkpoints of another CLIP. On CUDA, ``trainer.scaler`` is set if ``precision`` (PREC) is amp.
    """
    cfg = trainer.cfg
    learner.check_clip, node = not cfg.FORCE_RESUME, cfg.MODEL.BACKBONE
    learner.clip_name = node.WEIGHTS or node.NAME
    if cfg.DATASET.DESCRIPTIONS and not getattr(trainer, "uses_handwritten_prompts", False):
        print(f"Note: DATASET.DESCRIPTIONS does nothing: {cfg.TRAINER.NAME} learns its prompts")
    print("Turning off gradients in both the image and the text encoder")
    if cfg.MODEL.INIT_WEIGHTS:
        load_pretrained_weights(learner, cfg.MODEL.INIT_WEIGHTS)
    optim = build_optimizer(learner, cfg.OPTIM)
    sched = build_lr_scheduler(optim, cfg.OPTIM)
    trainer.register_model("prompt_learner", learner, optim, sched)
    if precision == "amp" and trainer.device.type == "cuda":
        trainer.scaler = torch.amp.GradScaler("cuda")
    return optim, sched
