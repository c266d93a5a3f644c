"""The words of the classes in the checkpoints of a prompt learner, where the original has them."""

from __future__ import annotations

import hashlib

import torch

from vlm.text.prompt_table import PromptTable

CLASS_TOKEN_KEYS = ("token_prefix", "token_suffix")
CHECKSUM_KEY = "class_tokens_blake2b"  # in their place, where they are too large
MAX_BYTES = 500_000_000  # bytes of them in a checkpoint; those of ImageNet's 1,000 classes have 150


def register_class_token_hooks(learner: PromptTable) -> None:
    """Let the checkpoints of a prompt learner (with a context ``ctx``) hold the words of its classes."""
    behind = learner.tokens[:, 1 + learner.ctx.shape[-2] :]  # of the context; on the CPU
    digest = hashlib.blake2b(behind.numpy().tobytes(), digest_size=16).digest()
    learner.checksum = torch.tensor([*digest], dtype=torch.uint8)
    if exceeds_limit(learner):
        print("Checkpoints have a checksum of the class tokens in their place: token_prefix, token_suffix")
    learner.register_state_dict_post_hook(add_class_tokens)
    learner.register_load_state_dict_pre_hook(drop_class_tokens)


def embed_class_tokens(learner: PromptTable) -> dict[str, torch.Tensor]:
    """Return the embeddings of what stands before and behind the context, (classes, 1 or more, width)."""
    table, behind = learner.table(learner.ctx.detach()), 1 + learner.ctx.shape[-2]
    return dict(zip(CLASS_TOKEN_KEYS, (table[learner.rows[:, :1]], table[learner.rows[:, behind:]]), strict=True))


def exceeds_limit(module: PromptTable) -> bool:
    """Whether a prompt learner has more words than a checkpoint should hold."""
    vectors = module.index.numel() - module.lengths.numel() * module.ctx.shape[-2]
    return vectors * module.fixed[0].nbytes > MAX_BYTES


def add_class_tokens(module: PromptTable, state_dict: dict, prefix: str, *_) -> None:
    """The original's checkpoints have the words of the classes in them. Of very many classes, a checksum will do."""
    if exceeds_limit(module):
        state_dict[prefix + CHECKSUM_KEY] = module.checksum
    else:
        state_dict.update({prefix + name: vectors for name, vectors in embed_class_tokens(module).items()})


def drop_class_tokens(module: PromptTable, state_dict: dict, prefix: str, *others) -> None:
    """They are those of the classes it was trained on. A generic context goes with other classes as well."""
    _, words, told = (state_dict.pop(prefix + name, None) for name in (*CLASS_TOKEN_KEYS, CHECKSUM_KEY))
    context = state_dict.get(prefix + "ctx", module.ctx)
    if module.ctx.dim() == 2 or context.shape != module.ctx.shape:  # PyTorch refuses another shape
        return
    same = told is None or torch.equal(told.cpu(), module.checksum)
    if words is not None:
        own, words = embed_class_tokens(module)[CLASS_TOKEN_KEYS[1]].float().cpu(), words.float().cpu()
        # The original's may be in half precision. Chinese-CLIP's prompts are as long as the longest class name.
        same = words.shape == own.shape and torch.allclose(words, own, atol=1e-3)
    if not same:
        others[-1].append("its contexts are class-specific (CSC), for other classes than these")
