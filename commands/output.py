"""How results are written: for people, or as JSON lines for programs."""

from __future__ import annotations

import json
import os
import sys


def write_result(record: dict, text: str, as_json: bool) -> None:
    """Print ``record``, the result for one image, as a line of JSON, or ``text``, which says the same to people. Where
    the reader, such as ``head``, has seen enough, the program ends."""
    try:
        print(json.dumps(record, ensure_ascii=False) if as_json else text, flush=True)
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # else Python would complain once more at its end
        raise SystemExit(0) from None
