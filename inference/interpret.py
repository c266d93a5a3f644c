"""The words of CLIP's vocabulary nearest to learned context tokens."""

from __future__ import annotations

from pathlib import Path

from tabulate import tabulate

from dassl.utils import UserError
from dassl.utils.checkpoint import find_checkpoints
from vlm.clip.load import load_cached_clip
from vlm.text.encoder import build_text_encoder
from vlm.text.nearest_words import find_nearest_words

from .prompt_checkpoint import CONTEXT_KEY, PROMPT_MODEL, read_prompt
from .trained_run import CONFIG_FILE, find_run_folder, load_classnames, load_run_cfg


def interpret_context(source: Path, epoch: int | None, backbone: str, weights: str, k: int) -> None:
    """Print ``find_context_words`` as a table; for class-specific contexts, as one for each class."""
    heading, tables = find_context_words(source, epoch, backbone, weights, k)
    print(heading)
    for name, rows in tables:
        if name:
            print(f"\n{name}")
        print(tabulate(rows, ["token", "nearest words (distance)"], disable_numparse=True, colalign=["right", "left"]))


def find_context_words(source: Path, epoch: int | None, backbone: str, weights: str, k: int) -> tuple[str, list[tuple]]:
    """Return a heading, and (class name, or "" for a shared context; rows (token, its ``k`` nearest words)).

    Args:
        source: folder of a run or of its prompt learner, or path of a checkpoint.
        epoch: epoch of the run's checkpoint; None for the best on validation images, else the newest.
        backbone: name of the CLIP that holds the words, or "" for the run's.
        weights: path of a CLIP weights file that replaces the backbone's weights, or "".

    Raises:
        UserError: there is no checkpoint; it has no context; or its CLIP is unknown, or has another width.
    """
    checkpoint, run_folder = find_checkpoints(source, [PROMPT_MODEL], epoch)[PROMPT_MODEL], find_run_folder(source)
    context = read_prompt(checkpoint)[0][CONTEXT_KEY]
    if not backbone and run_folder:
        node = load_run_cfg(run_folder).MODEL.BACKBONE
        backbone, weights = node.NAME, weights or node.WEIGHTS
    if not backbone and not weights:
        raise UserError(f"no CLIP is named, and {source} has no {CONFIG_FILE}: name the CLIP with --backbone")
    encoder, name = build_text_encoder(load_cached_clip(backbone, weights, "fp32", "cpu")[0]), weights or backbone
    if context.shape[-1] != (width := encoder.token_embedding.weight.shape[1]):
        raise UserError(
            f"{checkpoint} has vectors of {context.shape[-1]} numbers, the words of {name} have {width}: "
            "it was learned with another CLIP; name that with --backbone and --weights"
        )
    classnames, is_class_specific = load_classnames(run_folder) if run_folder else [], context.dim() == 3
    tables = []
    for label, vectors in enumerate(context.float() if is_class_specific else [context.float()]):
        classname = classnames[label] if len(classnames) == len(context) else f"class {label}"
        words = find_nearest_words(vectors, encoder, k)
        rows = [(n, ", ".join(f"{word} ({distance:.4f})" for word, distance in row)) for n, row in enumerate(words, 1)]
        tables.append((classname if is_class_specific else "", rows))
    return f"{checkpoint}: {context.shape[-2]} context tokens; the words are those of {name}", tables
