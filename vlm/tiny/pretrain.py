"""Pretrain the tiny CLIP on rendered digits: about eight minutes on one core.

python -m vlm.tiny.pretrain                      # writes vlm/tiny/tiny.safetensors
python -m vlm.tiny.pretrain --out /tmp/mine.safetensors --seed 1 --renders 12000
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import normalize as normalize_colours
from tqdm import tqdm

from vlm import openai
from vlm.contrastive import MAX_LOGIT_SCALE, contrastive_loss
from vlm.similarity import normalize
from vlm.text.tokenizer import tokenize
from vlm.tiny.render import IMAGE_SIZE, render_dataset
from vlm.tiny.weights import VOCAB_SIZE, WEIGHTS_FILE, initial_token_embedding, save_tiny

WIDTH = 128  # of the text transformer: two heads, as CLIP's build_model assumes heads of 64
ARCHITECTURE = {
    "embed_dim": 64,
    "image_resolution": IMAGE_SIZE,
    "vision_layers": (1, 1, 1, 1),
    "vision_width": 16,
    "vision_patch_size": None,
    "context_length": 77,
    "vocab_size": VOCAB_SIZE,
    "transformer_width": WIDTH,
    "transformer_heads": WIDTH // 64,
    "transformer_layers": 2,
}
BATCH = 256  # pairs of a step: enough different captions for the contrastive loss, few enough for one core
MAX_LR = 4e-3  # the peak of the one-cycle schedule: a small model and few steps allow a high rate
WEIGHT_DECAY = 0.05  # of matrices only, as in CLIP


def preprocess(images: torch.Tensor) -> torch.Tensor:
    """Return grey images, uint8 (n, height, width), as colour images (n, 3, height, width), normalised for CLIP."""
    return normalize_colours(images[:, None].expand(-1, 3, -1, -1) / 255, openai.MEAN, openai.STD)


def build_adamw(model: nn.Module, frozen: nn.Parameter) -> torch.optim.Optimizer:
    """Return AdamW over the parameters of ``model`` except ``frozen``; only matrices decay, as in CLIP."""
    parameters = [p for p in model.parameters() if p is not frozen]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=MAX_LR)


def encode_text(model: openai.CLIP, prompts: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return text features (n, embed_dim), not normalised, with gradients for all weights.

    Args:
        prompts: (n, 77, width), the token embeddings. Positions behind the longest text are not computed.
        tokens: (n, 77), the token ids.
    """
    eot_positions = tokens.argmax(dim=-1)  # the end-of-text token has the highest id
    length = int(eot_positions.max()) + 1
    x = prompts[:, :length] + model.positional_embedding[:length]
    for block in model.transformer.resblocks:
        attn = block.attn
        qkv = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)
        query, key, value = qkv.view(len(x), length, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + attn.out_proj(heads.transpose(1, 2).reshape(x.shape))
        x = x + block.mlp(block.ln_2(x))
    return model.ln_final(x[torch.arange(len(x)), eot_positions]) @ model.text_projection


def pretrain(renders: int, epochs: int, seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Train a tiny CLIP on ``renders`` images; return its state dict and the distinct token ids (n,) of all captions.

    ``seed`` determines the images, the initial weights and the batches. ``renders`` is at least BATCH, one batch.
    """
    pixels, captions = render_dataset(renders, seed)
    images = torch.from_numpy(pixels)
    texts = sorted(set(captions))
    text_ids = {text: i for i, text in enumerate(texts)}
    caption_ids = torch.tensor([text_ids[caption] for caption in captions])
    tokens = tokenize(texts)
    used = tokens.unique()

    torch.manual_seed(seed)
    model = openai.CLIP(**ARCHITECTURE).to(memory_format=torch.channels_last).train()
    table = model.token_embedding.weight.requires_grad_(False)
    table.copy_(initial_token_embedding(WIDTH))
    rows = nn.Parameter(table[used].clone())  # only the embeddings of used tokens are trained
    compact_tokens = torch.searchsorted(used, tokens)
    optimizer = build_adamw(model, frozen=table)
    optimizer.add_param_group({"params": [rows], "weight_decay": 0.0})
    steps = epochs * (renders // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LR, total_steps=steps)

    with tqdm(total=steps, desc="pretraining", disable=None) as bar:
        for _ in range(epochs):
            for batch in torch.randperm(renders)[: renders // BATCH * BATCH].split(BATCH):
                unique, inverse = caption_ids[batch].unique(return_inverse=True)
                image_features = normalize(model.encode_image(preprocess(images[batch])))
                text_features = normalize(encode_text(model, rows[compact_tokens[unique]], tokens[unique]))[inverse]
                logits = model.logit_scale.exp() * image_features @ text_features.t()
                loss = contrastive_loss(logits, caption_ids[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                model.logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}")
    with torch.no_grad():
        table[used] = rows
    return model.state_dict(), used


def main(argv: list[str] | None = None) -> None:
    """Parse the command line (by default sys.argv), pretrain, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=WEIGHTS_FILE)
    parser.add_argument("--renders", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the number of threads sets the order of summation, and so the bits of the weights
    save_tiny(*pretrain(args.renders, args.epochs, args.seed), path=args.out)
    print(f"{args.out} written: {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
