"""What CLIP and its neighbours say of pictures.

    python predict.py IMAGE… --classes cup "red envelope" cat [--template "a photo of a {}."] [--backbone ViT-B/32]
    python predict.py IMAGE… --model-dir output/imagenet/CoOp/rn50_16shots       # with a prompt that was learned

An IMAGE is a file, a folder, a glob pattern, or - for paths on standard input. Other commands come first: segment,
caption, match, ask; ``python predict.py COMMAND --help`` tells their options. Exit codes: 0 done, 2 a mistake that the
message names, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from dassl.utils import command_line
from inference import COMMANDS, DEFAULT_COMMAND


@command_line()
def main(argv: list[str] | None = None) -> int | None:
    """Run the command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    name, rest = (argv[0], argv[1:]) if argv and argv[0] in COMMANDS else (DEFAULT_COMMAND, argv)
    command = import_module(f"inference.{name}")
    description = __doc__ if rest is argv else command.__doc__
    parser = argparse.ArgumentParser(
        prog=f"predict.py {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="file, folder, glob pattern; -: paths on stdin")
    parser.add_argument("--json", action="store_true", help="one JSON object a line and image, for programs")
    command.add_arguments(parser)
    return command.run(parser.parse_intermixed_args(rest), name)


if __name__ == "__main__":
    sys.exit(main())
