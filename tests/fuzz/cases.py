"""Helpers of the fuzzing tests: how a case is judged and counted, odd texts, and random changes of files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from dassl.utils import UserError

COUNTS = {"cases": 0}  # cases that this process has run
MAX_LINES = 12  # lines of a clear message; a YAML error shows the place in three of them


class Refusal(str):
    """The message of a ``UserError``."""


def outcome(call: Callable, *arguments: Any, naming: object = "", **values: Any) -> Any:
    """Return the result of a call, or a ``Refusal`` if it raises ``UserError`` with a clear message.

    Other errors are raised, so they fail the test.

    Args:
        naming: text that the message must contain, such as the path of a file.
    """
    COUNTS["cases"] += 1
    try:
        return call(*arguments, **values)
    except UserError as error:
        message = str(error)
        assert len(message) > 10
        assert message.count("\n") < MAX_LINES
        assert str(naming) in message
        return Refusal(message)


# Texts that CLIP's tokenizer, a file system or a parser of lines treats specially.
ODD = (
    "",
    " ",
    "_",
    "cat",
    "a_cat",
    "café",
    "cafe\u0301",
    "ﬁsh",
    "İstanbul",
    "straße",
    "كلب أسود",
    "\u202eevil\u202c",
    "犬",
    "👩\u200d👩\u200d👧\u200d👦",
    "🇨🇭" * 20,
    "a\u200bb",
    "\ufeffcat",
    "cat\u2028dog",
    "cat\x85dog",
    "a\0b",
    "\x07\x1b[31mred\x1b[0m",
    "\ud83d",
    "&amp;",
    "&lt;|endoftext|&gt;",
    "<|endoftext|>",
    "schÃ¶n",
    "...............",
    "rock 'n' roll's",
    '"quoted"',
    "a,b\tc;d",
    "* accuracy: 99.99%",
    "very " * 75,
    "x" * 300,
    "1e999",
    "None",
    "[1, (2, {3: 4})]",
    "(" * 5000,
    "+" * 3000 + "1",
)
letters = st.characters(codec=None)  # with lone surrogates
short = st.sampled_from([text for text in ODD if len(text) < 100])
texts = st.one_of(st.sampled_from(ODD), st.text(letters, max_size=20), st.lists(short).map("".join))
valid_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


@st.composite
def mutations(draw: st.DrawFn, data: bytes) -> bytes:
    """Draw a copy of ``data`` with up to four changes: bytes inserted, dropped or doubled, or the end cut off."""
    data = bytearray(data)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.integers(0, 12)))
        kind = draw(st.sampled_from(["insert", "drop", "double", "cut"]))
        if kind == "insert":
            data[start:start] = draw(st.one_of(st.binary(max_size=4), st.sampled_from(SPECIAL_BYTES)))
        elif kind == "drop":
            del data[start:stop]
        elif kind == "double":
            data[start:start] = data[start:stop]
        else:
            del data[start:]
    return bytes(data)


# Bytes with a meaning in text files, JSON, CSV or YAML.
SPECIAL_BYTES = (b"\0", b"\r", b"\r\n", b"\n", b"\t", b"\xef\xbb\xbf", b"\xff\xfe", b"\xe2\x80\xa8", b'"', b"'")
SPECIAL_BYTES += (
    b": ",
    b"- ",
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!python/object:os.system ",
    b"!!binary ",
    b"!!bool ",
    b"---\n",
)
SPECIAL_BYTES += (
    b"nan",
    b"1e999",
    b"9" * 5000,
    b"null",
    b"true",
    b"\\ud800",
    b"[" * 3000,
    b'{"a":' * 3000,
    b"# ",
    b"? ",
)
SPECIAL_BYTES += (b"{", b"}", b"[", b"]", b"%", b"|", b",")
