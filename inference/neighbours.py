"""CLIP's neighbours: models of the package transformers, loaded by their name on the Hub or from a folder."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pickle import UnpicklingError
from typing import TypeVar

from dassl.utils import UserError, reason_of
from vlm.clip.hub import FETCH, hub, optional

TEXTS_AT_ONCE = 16  # computed with one image

T = TypeVar("T")


def add_model_argument(parser: argparse.ArgumentParser, default: str, what: str = "the model") -> None:
    parser.add_argument(
        "--model",
        default=default,
        metavar="NAME",
        help=f"{what}: its name on the Hugging Face Hub, or a folder ({default})",
    )


def load(name: str, kinds: Mapping[str, tuple[str, str]], user: str):
    """The model of that name on the Hub, or in that local folder, in evaluation mode, and its processor.

    Args:
        kinds: what its configuration may say that it is -> names of the model's class and of the processor's.
        user: the command that needs it, for messages.

    Raises:
        UserError: transformers is not installed; the model cannot be had, is of another kind, or its files lack a part.
    """
    package = optional("transformers", "transformers", user)
    package.utils.logging.set_verbosity_error()
    package.utils.logging.disable_progress_bar()
    name = os.path.expanduser(name)
    mend = _mend(name)
    with hub(name, mend), contextlib.redirect_stdout(sys.stderr):  # standard output is for results
        kind = package.AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
        if kind not in kinds:
            raise UserError(f'{name} is a model of the kind "{kind}"; {user} takes {" or ".join(kinds)}')
        model_class, processor_class = (getattr(package, part) for part in kinds[kind])
        processor = processor_class.from_pretrained(name)
        model = _with_all_weights(model_class, name, user)
    return model, processor


def _mend(name: str) -> str:
    """What to do when the model cannot be loaded.

    Raises:
        UserError: the name is the path of a folder that is not there.
    """
    if os.path.isdir(name):
        return "In a folder must be what the library saves: config.json, the weights, and the processor's files"
    if os.path.isabs(name) or name.startswith(".") or name.count("/") > 1:
        raise UserError(f"no folder {name}; --model takes a name on the Hugging Face Hub, or a folder")
    return FETCH.format(name, "--model ")


def _with_all_weights(model_class: type, name: str, user: str):
    """The model with its weights, on a GPU if there is one. What the file lacks, the library would draw at random."""
    import torch
    from safetensors import SafetensorError

    try:
        model, found = model_class.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    except (SafetensorError, UnpicklingError, EOFError) as error:
        raise UserError(f"the weights of {name} are damaged: {reason_of(error)}") from error
    parameters = {key for key, _ in model.named_parameters()}
    if missing := sorted(parameters.intersection(found["missing_keys"])):
        raise UserError(
            f"{name} was not trained for {user}: it has no weights for {len(missing):,} of the {len(parameters):,} "
            f"parameters of a {model_class.__name__} ({missing[0]}, …)"
        )
    return model.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")


def in_parts(texts: Sequence[T]) -> Iterator[Sequence[T]]:
    """As many at a time as one computation takes."""
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        yield texts[start : start + TEXTS_AT_ONCE]


def check_texts(texts: Sequence[str], option: str, processor, limit: int) -> None:
    """Raise :class:`UserError` if a text is empty or longer than ``limit``, the tokens that the model reads."""
    for text in texts:
        if not text.strip():
            raise UserError(f"{option}: a text is empty")
        if (length := len(processor.tokenizer(text).input_ids)) > limit:
            raise UserError(f'{option}: "{text}" has {length} tokens; the model reads at most {limit}')


def table(rows: Sequence[Sequence[str]], headers: Sequence[str], path: str, alone: bool, align: str = "right") -> str:
    """The result for one image, for people: a table, below the image's path unless it is ``alone``; ``align`` says how
    the columns behind the first stand."""
    from tabulate import tabulate

    text = tabulate(rows, headers, disable_numparse=True, colalign=["left", *[align] * (len(headers) - 1)])
    return text if alone else f"{path}\n{text}\n"
