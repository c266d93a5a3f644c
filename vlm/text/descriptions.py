"""Descriptions of classes: a JSON file with sentences for each class name, the format of CuPL.

Pratt et al., What does a platypus look like? Generating customized prompts for zero-shot image classification, 2023. A
language model wrote their sentences; here they come from the file.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence

from dassl.utils import UserError, read_json
from vlm.text.templates import clean_classname

MAX_NAMES = 5  # names in a message: CuPL's file for ImageNet has 1,000 classes


def read_descriptions(path: str | os.PathLike, classnames: Sequence[str]) -> list[list[str]]:
    """Return the sentences of each class, in the order of ``classnames``, from a JSON file: class name -> sentences.

    Names match with underscores as spaces. Case is ignored where a name has no exact match. Notes name classes in the
    file that are none of ``classnames``, and classes that share their sentences.

    Raises:
        UserError: the file is damaged; a class has no sentences, or several entries; a sentence is not usable.
    """
    entries = read_json(path)
    if not isinstance(entries, dict):
        raise UserError(f"{path} is not a JSON object, class name -> list of sentences")
    keys_by_name, keys_by_lower_case = defaultdict(list), defaultdict(list)
    for key in entries:
        keys_by_name[clean_classname(key)].append(key)
        keys_by_lower_case[clean_classname(key).lower()].append(key)
    matches = {}
    for classname in classnames:
        name = clean_classname(classname)
        matches[classname] = keys_by_name.get(name) or keys_by_lower_case.get(name.lower(), [])
        if len(matches[classname]) > 1:
            keys = " and ".join(f'"{key}"' for key in matches[classname])
            raise UserError(f'{path} has several entries for the class "{classname}": {keys}')
    if missing := [name for name, keys in matches.items() if not keys]:
        raise UserError(f"{path} has no sentences for {_join_names(missing)}")
    classes_by_key = defaultdict(list)
    for name in classnames:
        classes_by_key[matches[name][0]].append(name)
    for names in classes_by_key.values():
        if len(names) > 1:
            print(f"Note: {_join_names(names)} have the same sentences: CLIP cannot tell them apart")
    if unknown := [key for key in entries if key not in classes_by_key]:
        print(f"Note: {path} describes {_join_names(unknown)} that the data set does not have")
    return [_check_sentences(entries[matches[name][0]], f'{path}, "{name}"') for name in classnames]


def _check_sentences(sentences: object, where: str) -> list[str]:
    """Return ``sentences`` if it is a list of texts, not empty, without ``{}``; ``where`` begins the UserError."""
    if not isinstance(sentences, list) or not sentences:
        raise UserError(f"{where}: there must be a list of sentences, with at least one")
    for sentence in sentences:
        if not isinstance(sentence, str) or not sentence.strip():
            raise UserError(f"{where}: a sentence is empty, or no text")
        if "{}" in sentence:
            raise UserError(f'{where}: "{sentence}" is a template; DATASET.TEMPLATE takes a list of these')
    return sentences


def _join_names(names: Sequence[str]) -> str:
    """Return the number of classes and the first names, quoted: ``12 classes ("cat", …)``."""
    quoted = ", ".join(f'"{name}"' for name in names[:MAX_NAMES])
    return f"{len(names):,} class{'es' * (len(names) > 1)} ({quoted}{', …' * (len(names) > MAX_NAMES)})"
