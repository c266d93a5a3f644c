"""The parts taken from the package openai-clip: architecture, tokenizer, names, addresses."""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

MODULE_NAME = "vlm._openai_clip"


def _import_openai_clip() -> None:
    """Import the package as ``MODULE_NAME``. As ``clip``, another one would come in its place where a repository of the field
    has its own beside its train.py."""
    try:
        folder = Path(str(distribution("openai-clip").locate_file("clip")))
    except PackageNotFoundError:  # installed under another name, as from OpenAI's repository
        folder = Path(find_spec("clip").origin).parent
    spec = spec_from_file_location(MODULE_NAME, folder / "__init__.py", submodule_search_locations=[str(folder)])
    sys.modules[MODULE_NAME] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[MODULE_NAME])


with warnings.catch_warnings():
    # openai-clip reads a version through pkg_resources, which announces its own end.
    warnings.simplefilter("ignore")
    _import_openai_clip()
    from vlm._openai_clip.clip import _MODELS as URLS  # noqa: F401  name -> address, with the SHA-256
    from vlm._openai_clip.clip import _tokenizer as tokenizer  # noqa: F401
    from vlm._openai_clip.clip import tokenize  # noqa: F401
    from vlm._openai_clip.model import CLIP, QuickGELU, Transformer, build_model, convert_weights  # noqa: F401

# What OpenAI's archives hold beside the weights: three numbers, which build_model reads off the weights itself.
NON_WEIGHT_KEYS = ("input_resolution", "context_length", "vocab_size")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of the pixels it was trained on
