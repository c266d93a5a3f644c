"""What learned context tokens are like: the words of CLIP's vocabulary nearest to each, with Euclidean distances.

    python tools/interpret_prompt.py output/imagenet/CoOp/rn50_16shots --topk 3          # a run
    python tools/interpret_prompt.py prompt_learner/model.pth.tar-50 3 --backbone RN50   # a file, as in the original

A class-specific context (CSC) gives a table a class. A word that ends in a hyphen is the beginning of longer ones. Near
does not mean alike: the learned vectors need not lie close to any word.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.utils import UserError, check_at_least, command_line
from inference.runs import CONFIG, classnames_of, config_of

if TYPE_CHECKING:
    import torch

MODEL, CONTEXT = "prompt_learner", "ctx"  # the folder of a run, and the name in the checkpoint
TOPK = 5


def find_context(source: Path, epoch: int | None) -> tuple[Path, Path]:
    """The checkpoint that ``source``, a run or a checkpoint, means, and the folder of its run, if it has one."""
    from dassl.utils.checkpoint import find_checkpoint

    if source.is_dir():
        config_of(source)  # says what is wrong with a folder that is no run
        return find_checkpoint(source / MODEL, epoch), source
    if epoch is not None:
        raise UserError(f"--load-epoch is for the folder of a run; {source} is one checkpoint")
    return source, source.resolve().parent.parent


def read_context(checkpoint: Path) -> torch.Tensor:
    """The context (n_ctx, width), or (classes, n_ctx, width), in fp32."""
    from dassl.utils import load_checkpoint

    state_dict = {
        key.removeprefix("module."): value for key, value in load_checkpoint(checkpoint)["state_dict"].items()
    }
    context = state_dict.get(CONTEXT)
    if context is None or context.dim() not in (2, 3):
        raise UserError(f'{checkpoint} has no learned context "{CONTEXT}"; it has {", ".join(state_dict) or "nothing"}')
    return context.float()


def encoder_of(run: Path, backbone: str, weights: str):
    """The text encoder whose words the context was learned among, and what it is called."""
    from vlm.clip.load import load_shared
    from vlm.text.encoder import text_encoder

    if not backbone and (run / CONFIG).is_file():
        node = config_of(run).MODEL.BACKBONE
        backbone, weights = node.NAME, weights or node.WEIGHTS
    if not backbone and not weights:
        raise UserError(f"whose words? {run} has no {CONFIG}: name the CLIP, --backbone RN50")
    clip, _ = load_shared(backbone, weights, "fp32", "cpu")
    return text_encoder(clip), weights or backbone


def show(context: torch.Tensor, encoder, k: int) -> None:
    """Print the table of one context (n_ctx, width)."""
    from tabulate import tabulate

    from vlm.text.nearest_words import nearest_words

    rows = [
        [number, ", ".join(f"{word} ({distance:.4f})" for word, distance in words)]
        for number, words in enumerate(nearest_words(context, encoder, k), 1)
    ]
    print(tabulate(rows, ["token", "nearest words (distance)"], disable_numparse=True, colalign=["right", "left"]))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", type=Path, metavar="MODEL_DIR|CHECKPOINT", help="folder of a run, or a file")
    add("words", nargs="?", type=int, metavar="TOPK", help="the same as --topk")
    add("--topk", type=int, metavar="K", help=f"words a token ({TOPK})")
    add("--load-epoch", type=int, metavar="N", help="of the run; without it the best, else the newest")
    add("--backbone", default="", help="CLIP whose words they are; a run tells its own")
    add("--weights", default="", metavar="FILE", help="CLIP weights to take instead of the backbone's own")
    return parser.parse_args(argv)


@command_line()
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    k = next((k for k in (args.topk, args.words) if k is not None), TOPK)
    check_at_least(k, 1, "--topk")
    checkpoint, run = find_context(args.source, args.load_epoch)
    context = read_context(checkpoint)
    encoder, name = encoder_of(run, args.backbone, args.weights)
    width = encoder.token_embedding.weight.shape[1]
    if context.shape[-1] != width:
        raise UserError(
            f"{checkpoint} has vectors of {context.shape[-1]} numbers, the words of {name} have {width}; "
            "it was learned with another CLIP. --backbone and --weights name it"
        )
    print(f"{checkpoint}: {context.shape[-2]} context tokens; the words are those of {name}")
    if context.dim() == 2:
        show(context, encoder, k)
        return
    names = classnames_of(run)
    for number, own in enumerate(context):
        title = names[number] if len(names) == len(context) else f"class {number}"
        print(f"\n{title}")
        show(own, encoder, k)


if __name__ == "__main__":
    sys.exit(main())
