"""Class names, and prompts that contain them, as a text encoder reads them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch

from dassl.utils import UserError
from vlm.text.encoder import TextEncoder
from vlm.text.templates import clean_classname
from vlm.text.tokenizer import MAX_CHARACTERS, abbreviate_prompt

MAX_NOTES = 5  # notes about identical class names: with ImageNet-21k's names there would be hundreds
MAX_PROMPTS = 3  # prompts that the log shows: enough to notice a wrong template or wrong class names


def clean_classnames(encoder: TextEncoder, classnames: Sequence[str]) -> list[str]:
    """Return class names with spaces for underscores; print notes on classes whose names have the same tokens.

    Raises:
        UserError: a name has no tokens, or too many; the message names its class.
    """
    names = [clean_classname(name) for name in classnames]
    for label, name in enumerate(names):
        if len(name) <= MAX_CHARACTERS and not encoder.count_tokens(name):
            raise UserError(f'the name of class {label}, "{classnames[label]}", has no words that CLIP reads')
    groups = find_identical_names(encoder, names)
    for group in groups[:MAX_NOTES]:
        same = " and ".join(f'{label} ("{names[label]}")' for label in group)
        print(f"Note: for CLIP, the classes {same} have the same name: by their names alone, it cannot tell them apart")
    if len(groups) > MAX_NOTES:
        print(f"Note: {len(groups) - MAX_NOTES} further names are each shared by several classes")
    return names


def find_identical_names(encoder: TextEncoder, names: Sequence[str]) -> list[list[int]]:
    """Return groups of two or more labels whose names have the same tokens, such as names differing only in case."""
    groups = defaultdict(list)
    for label, ids in enumerate(tokenize_class_prompts(encoder, names).tolist()):
        groups[tuple(ids)].append(label)
    return [group for group in groups.values() if len(group) > 1]


def tokenize_class_prompts(encoder: TextEncoder, names: Sequence[str], template: str = "{}") -> torch.Tensor:
    """Return token ids (classes, length) of a template with each class name in place of its ``{}``.

    Raises:
        UserError: a prompt cannot be tokenized; the message names its class.
    """
    texts = [template.replace("{}", name) for name in names]
    try:
        return encoder.tokenize(texts)
    except UserError:
        for label, text in enumerate(texts):
            try:
                encoder.tokenize([text])
            except UserError as error:
                raise UserError(f"class {label}: {error}") from error
        raise


def print_prompts(num_classes: int, get_prompt: Callable[[int], str]) -> None:
    """Print the number of classes, and ``get_prompt(label)`` of the first ones."""
    prompts = [f'"{abbreviate_prompt(get_prompt(label))}"' for label in range(min(num_classes, MAX_PROMPTS))]
    print(f"{num_classes:,} class{'es' * (num_classes > 1)}; the first prompts: {', '.join(prompts)}")
