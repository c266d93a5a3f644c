"""CLIP's neighbours: models of the package transformers, loaded by their name on the Hub or from a folder."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pickle import UnpicklingError

from dassl.utils import UserError, error_reason
from vlm.clip.hub import DOWNLOAD_HINT, hub_access, import_optional

BATCH_TEXTS = 16  # computed with one image
# A model's kind, as its configuration has it -> how the names of its classes begin.
CLASS_PREFIXES = {"blip": "Blip", "blip-2": "Blip2", "clipseg": "CLIPSeg", "xclip": "XCLIP"}
DEFAULT_MAX_TOKENS = 512  # tokens; language models that know no longest text (T5) were trained with so many


def add_model_argument(parser: argparse.ArgumentParser, default: str) -> None:
    meaning = f"the model: its name on the Hugging Face Hub, or a folder ({default})"
    parser.add_argument("--model", default=default, metavar="NAME", help=meaning)


def load_model(name: str, kinds: Mapping[str, str], user: str):
    """Return the model of that name on the Hub, or in that local folder, in evaluation mode, and its processor.

    Args:
        kinds: of the model, as in PREFIXES -> name of its class.
        user: the command that needs it, for messages.

    Raises:
        UserError: transformers is not installed; the model cannot be had, is of another kind, or its files lack a part.
    """
    package = import_optional("transformers", "transformers", user)
    package.utils.logging.set_verbosity_error()
    package.utils.logging.disable_progress_bar()
    name, hint = os.path.expanduser(name), DOWNLOAD_HINT.format(name, "--model ")
    if os.path.isdir(name):
        hint = "In a folder must be what the library saves: config.json, the weights, and the processor's files"
    elif os.path.isabs(name) or name.startswith(".") or name.count("/") > 1:
        raise UserError(f"no folder {name}; --model takes a name on the Hugging Face Hub, or a folder")
    with hub_access(name, hint), contextlib.redirect_stdout(sys.stderr):  # standard output is for results
        kind = package.AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
        if kind not in kinds:
            raise UserError(f'{name} is a model of the kind "{kind}"; {user} takes {" or ".join(kinds)}')
        processor = getattr(package, f"{CLASS_PREFIXES[kind]}Processor").from_pretrained(name)
        model = _load_complete_model(getattr(package, kinds[kind]), name, user)
    return model, processor


def _load_complete_model(model_class: type, name: str, user: str):
    """Load the model, to a GPU if there is one; refuse a file that lacks weights, which the library would draw."""
    import torch
    from safetensors import SafetensorError

    try:
        model, found = model_class.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    except (SafetensorError, UnpicklingError, EOFError) as error:
        raise UserError(f"the weights of {name} are damaged: {error_reason(error)}") from error
    parameters = {key for key, _ in model.named_parameters()}
    if missing := sorted(parameters.intersection(found["missing_keys"])):
        raise UserError(
            f"{name} was not trained for {user}: it has no weights for {len(missing):,} of the {len(parameters):,} "
            f"parameters of a {model_class.__name__} ({missing[0]}, …)"
        )
    return model.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")


def batch_texts(texts: Sequence[str]) -> list[list[str]]:
    """Split texts into as many at a time as one computation takes."""
    return [list(texts[start : start + BATCH_TEXTS]) for start in range(0, len(texts), BATCH_TEXTS)]


def check_texts(texts: Sequence[str], option: str, model, processor) -> None:
    """Raise :class:`UserError` if a text is empty, or of more tokens than the model reads."""
    parts = (getattr(model.config, part, None) for part in ("text_config", "qformer_config"))
    limit = min(getattr(part, "max_position_embeddings", DEFAULT_MAX_TOKENS) for part in parts if part is not None)
    for text in texts:
        if not text.strip():
            raise UserError(f"{option}: a text is empty")
        if (length := len(processor.tokenizer(text).input_ids)) > limit:
            raise UserError(f'{option}: "{text}" has {length} tokens; the model reads at most {limit}')


def format_table(
    rows: Sequence[Sequence[str]], headers: Sequence[str], path: str, alone: bool, align: str = "right"
) -> str:
    """Return the result for one image, for people: a table, below the image's path unless it is ``alone``.

    ``align`` says how the columns behind the first stand.
    """
    from tabulate import tabulate

    text = tabulate(rows, headers, disable_numparse=True, colalign=["left", *[align] * (len(headers) - 1)])
    return text if alone else f"{path}\n{text}\n"
