"""The words of CLIP's vocabulary that are nearest to learned context tokens."""

from __future__ import annotations

from pathlib import Path

from tabulate import tabulate

from dassl.utils import UserError, load_checkpoint
from dassl.utils.checkpoint import find_checkpoint
from vlm.clip.load import load_cached_clip
from vlm.text.encoder import build_text_encoder
from vlm.text.nearest_words import find_nearest_words

from .trained_run import CONFIG, load_classnames, load_run_cfg

MODEL_NAME, CONTEXT_KEY = "prompt_learner", "ctx"  # the folder of a run, and the name in the checkpoint


def interpret_context(source: Path, epoch: int | None, backbone: str, weights: str, k: int) -> None:
    """Print a table of the ``k`` nearest words of each token; of class-specific contexts, a table a class.

    Args:
        source: the folder of a run, or a checkpoint.
        backbone: whose words; by default that of the run.

    Raises:
        UserError: there is no run, no checkpoint, no context in it; or the CLIP is not known, or of another width.
    """
    if source.is_dir():
        load_run_cfg(source)  # says what is wrong with a folder that is no run
        checkpoint, run = find_checkpoint(source / MODEL_NAME, epoch), source
    elif epoch is not None:
        raise UserError(f"--load-epoch is for the folder of a run; {source} is one checkpoint")
    else:
        checkpoint, run = source, source.resolve().parent.parent
    state_dict = {key.removeprefix("module."): v for key, v in load_checkpoint(checkpoint)["state_dict"].items()}
    context = state_dict.get(CONTEXT_KEY)
    if context is None or context.dim() not in (2, 3):
        raise UserError(
            f'{checkpoint} has no learned context "{CONTEXT_KEY}"; it has {", ".join(state_dict) or "nothing"}'
        )
    if not backbone and (run / CONFIG).is_file():
        node = load_run_cfg(run).MODEL.BACKBONE
        backbone, weights = node.NAME, weights or node.WEIGHTS
    if not backbone and not weights:
        raise UserError(f"whose words? {run} has no {CONFIG}: name the CLIP, --backbone RN50")
    encoder, name = build_text_encoder(load_cached_clip(backbone, weights, "fp32", "cpu")[0]), weights or backbone
    if context.shape[-1] != (width := encoder.token_embedding.weight.shape[1]):
        raise UserError(
            f"{checkpoint} has vectors of {context.shape[-1]} numbers, the words of {name} have {width}; "
            "it was learned with another CLIP. --backbone and --weights name it"
        )
    print(f"{checkpoint}: {context.shape[-2]} context tokens; the words are those of {name}")
    names, several = load_classnames(run), context.dim() == 3
    for number, own in enumerate(context.float() if several else [context.float()]):
        if several:
            print(f"\n{names[number] if len(names) == len(context) else f'class {number}'}")
        words = find_nearest_words(own, encoder, k)
        rows = [[n, ", ".join(f"{word} ({distance:.4f})" for word, distance in row)] for n, row in enumerate(words, 1)]
        print(tabulate(rows, ["token", "nearest words (distance)"], disable_numparse=True, colalign=["right", "left"]))
