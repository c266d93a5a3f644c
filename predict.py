"""Predictions of CLIP and related models for images and videos.

    python predict.py IMAGE… --classes cup "red envelope" cat [--template "a photo of a {}."] [--backbone ViT-B/32]
    python predict.py IMAGE… --model-dir output/imagenet/CoOp/rn50_16shots       # with the prompt that the run learned
    python predict.py IMAGE… --model-dir model.pth.tar-50 --backbone RN50 --classes cup cat     # with a prompt alone

With --json, each class has its probability, its logit and, if the method's logits are cosines of image and class
features times CLIP's logit scale, its cosine. The logits of adapters and of the linear probe are no cosines. CoCoOp's
class features are those under the image. A prompt alone is a checkpoint of CoOp or CoCoOp, or a folder of it. A run of
CLIPFineTune or CLIPLoRA takes --template or --ensemble, which replace its prompts, and --classes.

An IMAGE is a file, a folder, a glob pattern, or - for paths on standard input. In a folder and below it, all files that
Pillow opens count, whatever their names (HEIC needs pip install pillow-heif), but those that are hidden or the system's
(Thumbs.db), or in such a folder; a note counts the others. Images are turned upright by their EXIF tag, and
values of 16 bits are scaled to 8; with --model-dir, both are as in the run. Other commands stand before the images:
segment, caption, match, ask; and ``demo``, a page in the browser, before runs. ``python predict.py COMMAND --help``
shows their options. Exit codes: 0 success, 2 a user error that the message explains, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from dassl import __version__
from dassl.utils import command_line
from inference import COMMANDS, DEFAULT_COMMAND


@command_line()
def main(argv: list[str] | None = None) -> int | None:
    """Run the command that ``argv`` (None: sys.argv) begins with, else classify; return the exit code (None: 0)."""
    argv = sys.argv[1:] if argv is None else argv
    name, arguments = (argv[0], argv[1:]) if argv and argv[0] in COMMANDS else (DEFAULT_COMMAND, argv)
    command = import_module(f"inference.{name}")
    description = __doc__ if arguments is argv else command.__doc__
    parser = argparse.ArgumentParser(
        prog=f"predict.py {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"coop-dassl {__version__}")
    command.add_arguments(parser)
    return command.run(parser.parse_intermixed_args(arguments), name)


if __name__ == "__main__":
    sys.exit(main())
