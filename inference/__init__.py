"""The commands of predict.py: one file each, with ``add_arguments(parser)`` and ``run(args, name)``.

``args.images`` is what the user gave for images (see ``inference/images.py``), ``args.json`` whether the results are
for programs (``inference/output.py``).
"""

DEFAULT_COMMAND = "classify"
COMMANDS = (DEFAULT_COMMAND, "segment", "caption", "match", "ask")
