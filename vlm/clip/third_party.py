"""Checks and descriptions of CLIPs from other libraries."""

from __future__ import annotations

from importlib.metadata import version

from torch import nn

from dassl.utils import UserError
from vlm.openai import Transformer, tokenizer

EXTRA_LAYERS = ("ls_1", "ls_2", "ln_attn")  # open_clip's optional layers of a block; nn.Identity in a block like CLIP's


def describe_architecture(model: nn.Module, name: str, package: str) -> str:
    """Return as text all that features depend on beside weights: name, package, version, modules, numbers of heads."""
    heads = [module.num_heads for module in model.modules() if hasattr(module, "num_heads")]
    return f"{name} {package} {version(package)} {model} {heads}"


def check_clip_text_encoder(transformer: Transformer, token_embedding: nn.Embedding, name: str) -> None:
    """Raise UserError, naming ``name``, for a text encoder without CLIP's layers or the size of CLIP's vocabulary."""
    words = len(tokenizer.encoder)
    if token_embedding.num_embeddings != words:
        raise UserError(f"the text encoder of {name} knows {token_embedding.num_embeddings} words, not CLIP's {words}")
    if not all(_is_clip_block(block) for block in transformer.resblocks):
        raise UserError(f"the layers of the text encoder of {name} are not built as CLIP's")


def _is_clip_block(block: nn.Module) -> bool:
    """Return whether vlm.text.encoder can run a block: attention with biases, GELU or QuickGELU, no EXTRA_LAYERS."""
    activation = getattr(block.mlp, "gelu", None)
    extras = [getattr(block.mlp, "ln", None), *(getattr(block, name, None) for name in EXTRA_LAYERS)]
    return (
        isinstance(block.attn, nn.MultiheadAttention)
        and block.attn.in_proj_bias is not None
        and (isinstance(activation, nn.GELU) or type(activation).__name__ == "QuickGELU")
        and all(layer is None or isinstance(layer, nn.Identity) for layer in extras)
    )
