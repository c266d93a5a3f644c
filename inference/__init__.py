"""The commands of predict.py: one module each, with ``add_arguments(parser)`` and ``run(args, name)``.

Commands for images begin with ``inference.images.add_image_arguments``: ``args.images`` holds the image arguments
of the command line, ``args.json`` is True for results as JSON lines (see ``inference/output.py``).
"""

DEFAULT_COMMAND = "classify"  # the most frequent use needs no command's name
COMMANDS = (DEFAULT_COMMAND, "segment", "caption", "match", "ask", "demo")
