"""How results are written: for people, or as JSON lines for programs."""

from __future__ import annotations

import json


def write_result(record: dict, text: str, as_json: bool) -> None:
    """Print ``record``, the result for one image, as a line of JSON, or ``text``, which says the same to people."""
    print(json.dumps(record, ensure_ascii=False) if as_json else text, flush=True)
