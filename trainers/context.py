"""What methods that learn a context share: its settings, where it starts, how it is trained."""

from __future__ import annotations

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.engine import TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UserError, check_availability, load_pretrained_weights
from vlm.clip.load import PRECISIONS
from vlm.text.encoder import TextEncoder
from vlm.text.templates import clean_classname
from vlm.text.tokenizer import count_tokens


def check_context(node: CfgNode, name: str) -> None:
    """Raise :class:`UserError` for values of N_CTX, CTX_INIT and PREC that cannot be."""
    check_availability(node.PREC, PRECISIONS, f"{name}.PREC")
    if not node.CTX_INIT and node.N_CTX < 1:
        raise UserError(f"{name}.N_CTX is {node.N_CTX}; there must be at least 1 context token")
    if node.CTX_INIT and not count_tokens(clean_classname(node.CTX_INIT)):
        raise UserError(f'{name}.CTX_INIT "{node.CTX_INIT}" has no words to start from')


def build_initial_context(
    text_encoder: TextEncoder, n_ctx: int, words: str, classes: int | None = None
) -> torch.Tensor:
    """Return the embeddings of ``words``, or Gaussian noise (standard deviation 0.02).

    Args:
        n_ctx: context tokens, where there are no ``words``.
        classes: how many contexts; None: one for all classes.

    Returns:
        (n_ctx, width), or (classes, n_ctx, width).
    """
    table, dtype = text_encoder.token_embedding.weight, text_encoder.dtype
    dtype = torch.float32 if dtype == torch.bfloat16 else dtype  # of whose 8 bits, a small step would change none
    words = clean_classname(words) if words else ""
    n_ctx = text_encoder.count_tokens(words) if words else n_ctx
    if n_ctx > 512:  # tokens that Chinese-CLIP's text encoder takes, which takes the longest prompts
        raise UserError(f"there are {n_ctx:,} context tokens (N_CTX); no prompt has more than 512")
    several = [] if classes is None else [classes]
    if words:
        tokens = text_encoder.tokenize([words]).to(table.device)
        context = text_encoder.embed(tokens)[0, 1 : 1 + n_ctx].to(dtype).expand(*several, -1, -1)
    else:
        print("Initializing class-specific contexts" if several else "Initializing a generic context")
        words = " ".join(["X"] * n_ctx)
        # Drawn on the CPU, so that a seed means the same context everywhere.
        context = torch.empty(*several, n_ctx, table.shape[1], dtype=dtype).normal_(std=0.02).to(table.device)
    print(f'Initial context: "{words}"')
    print(f"Number of context words (tokens): {n_ctx}")
    return context.clone()


def register_prompt_learner(trainer: TrainerX, learner: nn.Module, precision: str) -> None:
    """Register a prompt learner with its optimizer and schedule; start it from MODEL.INIT_WEIGHTS, if given."""
    cfg = trainer.cfg
    print("Turning off gradients in both the image and the text encoder")
    if cfg.MODEL.INIT_WEIGHTS:
        load_pretrained_weights(learner, cfg.MODEL.INIT_WEIGHTS)
    trainer.optim = build_optimizer(learner, cfg.OPTIM)
    trainer.sched = build_lr_scheduler(trainer.optim, cfg.OPTIM)
    trainer.register_model("prompt_learner", learner, trainer.optim, trainer.sched)
    if precision == "amp" and trainer.device.type == "cuda":
        trainer.scaler = torch.amp.GradScaler("cuda")
