"""Models of the package transformers (BLIP, CLIPSeg, X-CLIP): loading, checks of texts, tables of results."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pickle import UnpicklingError

from dassl.utils import UserError, error_reason, import_optional
from vlm.clip.hub import DOWNLOAD_HINT, hub_access, load_complete_model

BATCH_TEXTS = 16  # texts computed at once: sixteen copies of one image's activations fit into a laptop's memory
# Hugging Face model_type -> prefix of the class names in transformers
CLASS_PREFIXES = {"blip": "Blip", "blip-2": "Blip2", "clipseg": "CLIPSeg", "xclip": "XCLIP"}
DEFAULT_MAX_TOKENS = 512  # tokens; T5's configuration has no limit, and T5 was trained with texts of this length


def add_model_argument(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the option ``--model`` to ``parser``; ``default`` is a model's name on the Hugging Face Hub."""
    text = f"the model: its name on the Hugging Face Hub, or a folder ({default})"
    parser.add_argument("--model", default=default, metavar="NAME", help=text)


def load_model(name: str, model_classes: Mapping[str, str], purpose: str):
    """Return (model, processor) from the Hub or from a local folder; the model is frozen, in evaluation mode.

    Args:
        name: name of the model on the Hub, or path of a folder.
        model_classes: name of the model's class in transformers for each Hugging Face model_type that is allowed.
        purpose: command or task that needs the model, for messages.

    Raises:
        UserError: transformers is not installed; the model cannot be fetched or read, has another model_type, or lacks
            weights.
    """
    transformers = import_optional("transformers", "transformers", purpose)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    name, hint = os.path.expanduser(name), DOWNLOAD_HINT.format(name, "--model ")
    if os.path.isdir(name):
        hint = "The folder needs the files that transformers saves: config.json, the weights and the processor"
    elif os.path.isabs(name) or name.startswith(".") or name.count("/") > 1:
        raise UserError(f"no folder {name}; --model takes a name on the Hugging Face Hub, or a folder")
    with hub_access(name, hint), contextlib.redirect_stdout(sys.stderr):  # standard output is for results
        model_type = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
        if model_type not in model_classes:
            allowed = " or ".join(model_classes)
            raise UserError(f'{name} is a model of the kind "{model_type}"; {purpose} takes {allowed}')
        processor = getattr(transformers, f"{CLASS_PREFIXES[model_type]}Processor").from_pretrained(name)
        model = _load_complete_model(getattr(transformers, model_classes[model_type]), name, purpose)
    return model, processor


def _load_complete_model(model_class: type, name: str, purpose: str):
    """Return the model ``name`` of ``load_model`` in fp32, on a GPU if there is one, frozen, in evaluation mode.

    ``model_class`` is its class in transformers. Raise ``UserError`` if weights are damaged or not finite, or are
    missing or of another shape, which transformers draws at random; the message names ``purpose``.
    """
    import torch
    from safetensors import SafetensorError

    from dassl.utils.checkpoint import check_finite, get_learned_tensors  # loads PyTorch

    try:
        model = load_complete_model(model_class, name, f"{name} was not trained for {purpose}, or is incomplete")
    except (SafetensorError, UnpicklingError, EOFError) as error:
        raise UserError(f"the weights of {name} are damaged: {error_reason(error)}") from error
    check_finite(get_learned_tensors(model), name)
    return model.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")


def batch_texts(texts: Sequence[str]) -> list[list[str]]:
    """Return ``texts`` split into lists of at most ``BATCH_TEXTS``, in order."""
    return [list(texts[start : start + BATCH_TEXTS]) for start in range(0, len(texts), BATCH_TEXTS)]


def check_texts(texts: Sequence[str], option: str, model, processor) -> None:
    """Raise ``UserError`` if a text of ``option`` is empty, or too long for ``model``, in ``processor`` tokens."""
    configs = (getattr(model.config, name, None) for name in ("text_config", "qformer_config"))
    configs = [config for config in configs if config is not None]
    limit = min(getattr(config, "max_position_embeddings", DEFAULT_MAX_TOKENS) for config in configs)
    for text in texts:
        if not text.strip():
            raise UserError(f"{option}: a text is empty")
        if (length := len(processor.tokenizer(text).input_ids)) > limit:
            raise UserError(f'{option}: "{text}" has {length} tokens; the model reads at most {limit}')


def format_table(
    rows: Sequence[Sequence[str]], headers: Sequence[str], path: str, is_single: bool, align: str = "right"
) -> str:
    """Return the result for one image as a table; the image's path stands above it unless ``is_single``.

    ``align`` ("left", "right") holds for all columns but the first, which is left-aligned.
    """
    from tabulate import tabulate

    table = tabulate(rows, headers, disable_numparse=True, colalign=["left", *[align] * (len(headers) - 1)])
    return table if is_single else f"{path}\n{table}\n"
