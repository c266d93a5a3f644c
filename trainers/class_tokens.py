"""State-dict hooks that save the embeddings of the class tokens with a prompt learner, as CoOp's code does.

``learner`` is a ``trainers.coop.PromptLearner`` everywhere.
"""

from __future__ import annotations

import hashlib

import torch

CLASS_TOKEN_KEYS = ("token_prefix", "token_suffix")  # CoOp's keys: tokens before and after the context
CHECKSUM_KEY = "class_tokens_blake2b"  # key of the checksum that replaces class tokens above MAX_CLASS_TOKEN_BYTES
# Tolerances for embeddings in half precision: CoOp's code saves float16, and bfloat16 has 8 significant bits. CLIPs'
# embeddings are drawn with a standard deviation of 0.02, so those of two CLIPs differ by more.
ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE = 1e-3, 1e-2
MAX_CLASS_TOKEN_BYTES = 500_000_000  # bytes of class tokens in a checkpoint; ImageNet's 1,000 classes have 150 million


def hash_class_tokens(learner) -> torch.Tensor:
    """Return one checksum, uint8 (16,), of the token ids that follow the context in the prompts of all classes."""
    suffix_ids = learner.tokens[:, 1 + learner.ctx.shape[-2] :]  # on the CPU
    digest = hashlib.blake2b(suffix_ids.numpy().tobytes(), digest_size=16).digest()
    return torch.tensor([*digest], dtype=torch.uint8)


def register_class_token_hooks(learner) -> None:
    """Make ``learner`` save the class tokens (its prompts' tokens around the context), and check loaded ones.

    With ``learner.check_clip`` False, it also loads contexts that were learned with another CLIP, and adds a sentence
    to ``learner.allowed_mismatch``; if True, a message names the learner's CLIP as ``learner.clip_name``.
    """
    learner.check_clip, learner.clip_name, learner.allowed_mismatch = True, "this one", ()
    if exceeds_limit(learner):
        print("Checkpoints have a checksum of the class tokens in their place: token_prefix, token_suffix")
    learner.register_state_dict_post_hook(add_class_tokens)
    learner.register_load_state_dict_pre_hook(drop_class_tokens)


def embed_class_tokens(learner) -> dict[str, torch.Tensor]:
    """Return embeddings: token_prefix (classes, 1, width), before the context, and token_suffix (classes, n, width)."""
    table, suffix_start = learner.table(learner.ctx.detach()), 1 + learner.ctx.shape[-2]
    return dict(zip(CLASS_TOKEN_KEYS, (table[learner.rows[:, :1]], table[learner.rows[:, suffix_start:]]), strict=True))


def exceeds_limit(learner) -> bool:
    """Return whether the embeddings of the class tokens take more than ``MAX_CLASS_TOKEN_BYTES``."""
    vectors = learner.index.numel() - learner.lengths.numel() * learner.ctx.shape[-2]
    return vectors * learner.fixed_embeddings[0].nbytes > MAX_CLASS_TOKEN_BYTES


def add_class_tokens(learner, state_dict: dict, prefix: str, *_) -> None:
    """Add the class tokens' embeddings to ``state_dict``; above the limit, a checksum (state-dict post-hook)."""
    if exceeds_limit(learner):
        state_dict[prefix + CHECKSUM_KEY] = learner.checksum
    else:
        state_dict.update({prefix + name: vectors for name, vectors in embed_class_tokens(learner).items()})


def drop_class_tokens(learner, state_dict: dict, prefix: str, *hook_args) -> None:
    """Remove the class tokens from ``state_dict``, as the learner computes its own (load-state-dict pre-hook).

    It reports a load error if the context has another shape, or was learned with another CLIP: the prefix, the start
    token's embedding, then differs. For class-specific contexts, it also reports one if the class tokens are not those
    of the learner's classes. A context that all classes share is loaded for any classes.
    """
    keys, error_messages = (*CLASS_TOKEN_KEYS, CHECKSUM_KEY), hook_args[-1]
    start, suffix, checksum = (state_dict.pop(prefix + key, None) for key in keys)
    context = state_dict.get(prefix + "ctx", learner.ctx)
    expected = learner.table(learner.ctx.detach())[learner.rows[:1, :1]]
    if start is not None and (start.dim() != 3 or not is_close(start[:1], expected)):
        problem = f"its context was learned with another CLIP than {learner.clip_name}"
        if not learner.check_clip:
            learner.allowed_mismatch += (problem,)
            print(f"Note: {problem}")
        else:
            cause = "the embedding of the start token differs"
            error_messages.append(f"{problem}: {cause} (train.py --allow-mismatch accepts it)")
            return
    if problem := describe_other_shape(context, learner.ctx):
        error_messages.append(problem)
        state_dict[prefix + "ctx"] = learner.ctx.detach()  # without PyTorch's own error
        return
    if learner.ctx.dim() == 2:
        return
    same = len(context) == len(learner.ctx) and (checksum is None or torch.equal(checksum.cpu(), learner.checksum))
    if same and suffix is not None:
        same = is_close(suffix, embed_class_tokens(learner)[CLASS_TOKEN_KEYS[1]])
    if not same:
        error_messages.append("its contexts are class-specific (CSC), for other classes than these")
        state_dict[prefix + "ctx"] = learner.ctx.detach()


def describe_other_shape(context: torch.Tensor, expected: torch.Tensor) -> str:
    """Return how the shape of a saved context differs from ``expected``, but for the number of classes; "": it fits."""
    kinds = {2: "one context for all classes", 3: "class-specific contexts (CSC)"}
    if context.dim() != expected.dim():
        return f"it has {kinds.get(context.dim(), 'no context')}, not {kinds[expected.dim()]}"
    if context.shape[-2] != expected.shape[-2]:
        return f"its context has {context.shape[-2]} tokens, not {expected.shape[-2]} (N_CTX, or the words of CTX_INIT)"
    return ""


def is_close(saved: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return whether saved embeddings have the expected shape and, but for half precision, the expected values.

    Chinese-CLIP's suffixes differ in length between class names.
    """
    saved, expected = saved.float().cpu(), expected.float().cpu()
    same_shape = saved.shape == expected.shape
    return same_shape and torch.allclose(saved, expected, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE)
