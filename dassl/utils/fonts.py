"""Fonts of plots. Texts of users may be Chinese, Japanese or Korean, whose letters Matplotlib's default font lacks."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache

DEFAULT_FONT = "DejaVu Sans"  # comes with Matplotlib
# Fonts with the letters of Chinese, Japanese and Korean: Noto (Linux), those of Windows, those of macOS.
CJK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",  # the first font in the file of Noto Sans CJK SC, and the only one that Matplotlib sees
    "Noto Sans SC",
    "Microsoft YaHei",
    "SimHei",
    "Malgun Gothic",
    "PingFang SC",
    "Hiragino Sans GB",
    "WenQuanYi Zen Hei",
)


@cache  # one note for all images of a command
def find_fonts(texts: tuple[str, ...]) -> list[str]:
    """Return the default font, and if it lacks letters of ``texts``, the first font of CJK_FONTS with most of these.

    Print a note if no font has some of the letters.
    """
    from matplotlib import font_manager, get_cachedir

    letters = {ord(letter) for text in texts for letter in text if letter.isprintable()}
    fonts = {font.name: font.fname for font in font_manager.fontManager.ttflist}  # one file of each family
    lacking = letters - _find_letters(fonts[DEFAULT_FONT])
    if not lacking:
        return [DEFAULT_FONT]
    missing = {name: lacking - _find_letters(fonts[name]) for name in CJK_FONTS if name in fonts}
    name = min(missing, key=lambda name: len(missing[name]), default="")
    if lacking := missing.get(name, lacking):
        print(
            f"Note: no installed font has {''.join(map(chr, sorted(lacking)[:10]))}; boxes take their place. For "
            "Chinese, install Noto Sans CJK SC (apt install fonts-noto-cjk; Windows has Microsoft YaHei), and remove "
            f"the list of fonts in {get_cachedir()}",
            file=sys.stderr,
        )
    return [DEFAULT_FONT, name] if name else [DEFAULT_FONT]


def _find_letters(path: str) -> set[int]:
    """Return the code points of the letters in a font file."""
    from matplotlib.ft2font import FT2Font

    return set(FT2Font(path).get_charmap())


@contextmanager
def plot_fonts(texts: Iterable[str]) -> Iterator[None]:
    """Use fonts that have the letters of ``texts`` for the plots of a ``with``."""
    from matplotlib import rc_context

    with rc_context({"font.family": find_fonts(tuple(texts))}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # find_fonts prints a note
        yield
