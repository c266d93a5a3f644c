"""The parts taken from the package openai-clip: architecture, tokenizer, names, addresses."""

import warnings

with warnings.catch_warnings():
    # openai-clip reads a version through pkg_resources, which announces its own end.
    warnings.simplefilter("ignore")
    from clip.clip import _MODELS as URLS  # name -> address; the address holds the file's SHA-256
    from clip.clip import _tokenizer as tokenizer
    from clip.clip import tokenize
    from clip.model import CLIP, build_model, convert_weights

# What OpenAI's archives hold beside the weights: three numbers, which build_model reads off the weights itself.
NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size")

__all__ = ["CLIP", "NO_WEIGHTS", "URLS", "build_model", "convert_weights", "tokenize", "tokenizer"]
