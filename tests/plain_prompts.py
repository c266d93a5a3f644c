"""CLIP's towers with deep prompts by definition: every prompt has 77 tokens; all images are computed at once."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from vlm.openai import CLIP, ModifiedResNet


def encode_texts(clip: CLIP, prompts: torch.Tensor, eot_positions: torch.Tensor, deep=()) -> torch.Tensor:
    """Return text features (n, embed_dim) of prompts (n, 77, width); ``deep``: (n_ctx, width) of layers 1, 2, …."""
    x = prompts + clip.positional_embedding
    for number, block in enumerate(clip.transformer.resblocks):
        if 1 <= number <= len(deep):
            prompt = deep[number - 1].expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], prompt, x[:, 1 + prompt.shape[1] :]], dim=1)
        x = block(x.permute(1, 0, 2)).permute(1, 0, 2)
    return clip.ln_final(x)[torch.arange(len(x)), eot_positions] @ clip.text_projection


def encode_images(clip: CLIP, images: torch.Tensor, prompts) -> torch.Tensor:
    """Return image features (n, embed_dim); ``prompts``: (n_ctx, width) of layers 0, 1, …."""
    encode = _encode_by_resnet if isinstance(clip.visual, ModifiedResNet) else _encode_by_transformer
    return encode(clip.visual, images, prompts)


def _encode_by_transformer(visual, images: torch.Tensor, prompts) -> torch.Tensor:
    """Return features by a VisionTransformer, whose layer 0 takes class token, patches and prompts."""
    n, n_ctx = len(images), len(prompts[0])
    patches = visual.conv1(images).reshape(n, visual.class_embedding.shape[0], -1).permute(0, 2, 1)
    tokens = torch.cat([visual.class_embedding.expand(n, 1, -1), patches], dim=1) + visual.positional_embedding
    x = visual.ln_pre(torch.cat([tokens, prompts[0].expand(n, -1, -1)], dim=1))
    for number, block in enumerate(visual.transformer.resblocks):
        if 1 <= number < len(prompts):
            x = torch.cat([x[:, : x.shape[1] - n_ctx], prompts[number].expand(n, -1, -1)], dim=1)
        x = block(x.permute(1, 0, 2)).permute(1, 0, 2)
    return visual.ln_post(x[:, 0]) @ visual.proj


def _encode_by_resnet(visual, images: torch.Tensor, prompts) -> torch.Tensor:
    """Return features by a ModifiedResNet, whose attention pool has the prompts as further keys and values."""
    (prompt,), pool, seen = prompts, visual.attnpool, {}
    handle = pool.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    visual(images)
    handle.remove()
    x = seen["x"].flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(0, keepdim=True), x]) + pool.positional_embedding[:, None]
    tokens = torch.cat([x, prompt[:, None].expand(-1, len(images), -1)])
    query, key, value = pool.q_proj(x[:1])[0], pool.k_proj(tokens), pool.v_proj(tokens)
    heads = []
    for q, k, v in zip(*(each.chunk(pool.num_heads, dim=-1) for each in (query, key, value)), strict=True):
        scores = torch.einsum("nd,tnd->nt", q, k) / q.shape[-1] ** 0.5
        heads.append(torch.einsum("nt,tnd->nd", scores.softmax(-1), v))
    return pool.c_proj(torch.cat(heads, dim=-1))


def logits(clip: CLIP, f: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Return CLIP's logits (n, classes) of image features ``f`` and text features ``g``, of any length."""
    return clip.logit_scale.exp() * F.normalize(f, dim=-1) @ F.normalize(g, dim=-1).t()
