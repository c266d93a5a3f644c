"""docs/troubleshooting.md quotes messages of the programs: each is in the code, so the page cannot go stale."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.common import REPOSITORY

FOLDERS = ("dassl", "vlm", "datasets", "trainers", "inference", "studies", "tools")
PAGE = (REPOSITORY / "docs/troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^### `(.*)`$", PAGE, re.MULTILINE)


def list_texts(source: str) -> Iterator[str]:
    """Yield each text in Python's ``source``, with "…" for what an f-string fills in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.fixture(scope="module")
def texts() -> set[str]:
    """The texts of the code."""
    files = [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")]
    return {text for path in files for text in list_texts(path.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("message", MESSAGES)
def test_the_code_has_a_message_that_begins_as_the_page_says(message, texts):
    quoted = message.removesuffix("…")
    assert re.search(r"\w\w", quoted)  # not of placeholders alone
    assert any(text.startswith(quoted) for text in texts)


def test_the_page_has_the_messages_that_people_meet_each_once():
    assert 40 <= len(MESSAGES) == len(set(MESSAGES))


def test_texts_of_the_code_have_placeholders_where_f_strings_have_values():
    assert "no folder …. …" in list_texts('raise UserError(f"no folder {root}. " f"{hint}")')
