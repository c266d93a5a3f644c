"""What CLIPs of other libraries go through before they are run: is it one, and what is there beside its weights?"""

from __future__ import annotations

from importlib.metadata import version

from torch import nn

from dassl.utils import UserError
from vlm.openai import tokenizer

EXTRA_LAYERS = ("ls_1", "ls_2", "ln_attn")  # parts of a layer that some models have; in CLIP's they do nothing


def describe_architecture(model: nn.Module, name: str, package: str) -> str:
    """Everything that features depend on beside the weights: for their fingerprint."""
    heads = [part.num_heads for part in model.modules() if hasattr(part, "num_heads")]
    return f"{name} {package} {version(package)} {model} {heads}"


def check_clip_text_encoder(transformer: nn.Module, token_embedding: nn.Embedding, name: str) -> None:
    """Raise :class:`UserError` unless a text encoder has layers as CLIP's and reads CLIP's words."""
    words = len(tokenizer.encoder)
    if token_embedding.num_embeddings != words:
        raise UserError(f"the text encoder of {name} knows {token_embedding.num_embeddings} words, not CLIP's {words}")
    if not all(_is_clip_block(block) for block in transformer.resblocks):
        raise UserError(f"the layers of the text encoder of {name} are not built as CLIP's")


def _is_clip_block(block: nn.Module) -> bool:
    activation = getattr(block.mlp, "gelu", None)
    others = [getattr(block.mlp, "ln", None), *(getattr(block, part, None) for part in EXTRA_LAYERS)]
    return (
        isinstance(block.attn, nn.MultiheadAttention)
        and block.attn.in_proj_bias is not None
        and (isinstance(activation, nn.GELU) or type(activation).__name__ == "QuickGELU")
        and all(part is None or isinstance(part, nn.Identity) for part in others)
    )
