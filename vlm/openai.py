"""CLIP's architecture, tokenizer, model names and download addresses, from the package openai-clip."""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

MODULE_NAME = "vlm._openai_clip"  # not "clip": a repository of the field may have a folder clip beside its train.py


def _import_openai_clip() -> None:
    """Import the package openai-clip under the name ``MODULE_NAME``."""
    try:
        folder = Path(str(distribution("openai-clip").locate_file("clip")))
    except PackageNotFoundError:  # installed under another name, as from OpenAI's repository
        clip = find_spec("clip")
        assert clip is not None  # one of the two is a requirement of this project
        folder = Path(str(clip.origin)).parent
    spec = spec_from_file_location(MODULE_NAME, folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None
    assert spec.loader is not None  # neither is None for a .py file
    sys.modules[MODULE_NAME] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[MODULE_NAME])


with warnings.catch_warnings():
    # openai-clip reads a version through pkg_resources, which warns that it is deprecated.
    warnings.simplefilter("ignore")
    _import_openai_clip()
    from vlm._openai_clip.clip import _MODELS as URLS  # noqa: F401  name -> address, with the SHA-256
    from vlm._openai_clip.clip import _tokenizer as tokenizer  # noqa: F401
    from vlm._openai_clip.clip import tokenize  # noqa: F401
    from vlm._openai_clip.model import CLIP, ModifiedResNet, QuickGELU, Transformer, build_model, convert_weights  # noqa: F401

# Entries of OpenAI's archives that are not weights: three numbers, which build_model derives from the weights.
NON_WEIGHT_KEYS = ("input_resolution", "context_length", "vocab_size")
# Mean and standard deviation of the red, green and blue of CLIP's training images, in [0, 1]; its inputs have 0 and 1.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
