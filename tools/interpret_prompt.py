"""Print the words of CLIP's vocabulary nearest to each learned context token, with Euclidean distances.

    python tools/interpret_prompt.py output/imagenet/CoOp/rn50_16shots --topk 3          # a run
    python tools/interpret_prompt.py prompt_learner/model.pth.tar-50 3 --backbone RN50   # a checkpoint, as in CoOp

A class-specific context (CSC) gives one table for each class. A word that ends in a hyphen is the beginning of longer
words. The nearest words need not resemble a learned vector: it may lie far from every word.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.utils import check_at_least, command_line


@command_line()
def main(argv: list[str] | None = None) -> None:
    """Print the nearest words to the context of the run or checkpoint that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", type=Path, metavar="MODEL_DIR|CHECKPOINT", help="folder of a run, or a checkpoint")
    add("words", nargs="?", type=int, metavar="TOPK", help="the same as --topk")
    add("--topk", type=int, metavar="K", help="words for each token (5)")
    add("--load-epoch", type=int, metavar="N", help="epoch of the run's checkpoint (the best, else the newest)")
    add("--backbone", default="", help="CLIP that has the words, such as RN50 (the run's)")
    add("--weights", default="", metavar="FILE", help="CLIP weights that replace those of the backbone")
    args = parser.parse_args(argv)
    k = next((k for k in (args.topk, args.words) if k is not None), 5)
    check_at_least(k, 1, "--topk")
    from inference.interpret import interpret_context

    interpret_context(args.source, args.load_epoch, args.backbone, args.weights, k)


if __name__ == "__main__":
    sys.exit(main())
