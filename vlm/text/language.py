"""Notes on class names and templates in another language than that of the texts which a CLIP learned from."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from vlm.text.templates import DEFAULT_TEMPLATES

CHINESE_CLIP = "hf:OFA-Sys/chinese-clip-vit-base-patch16"  # the smallest ViT that Chinese-CLIP's authors published
MAX_EXAMPLES = 3  # texts that a note names


def print_language_notes(language: str, classnames: Sequence[str], templates: Sequence[str] = ()) -> None:
    """Print a note if class names, and one if templates, have other letters than ``language`` (English, Chinese)."""
    advice = {
        ("English", "class names"): f"use English names, or a CLIP of their language, for Chinese {CHINESE_CLIP}",
        ("English", "templates"): f'use English ones, such as "{DEFAULT_TEMPLATES["English"]}"',
        ("Chinese", "class names"): "use Chinese names, or a CLIP that learned from English texts",
        ("Chinese", "templates"): f'use Chinese ones, such as "{DEFAULT_TEMPLATES["Chinese"]}"',
    }
    for kind, texts in (("class names", classnames), ("templates", templates)):
        foreign = [text for text in texts if is_foreign(text, language)]
        if foreign:
            examples = ", ".join(f'"{text}"' for text in foreign[:MAX_EXAMPLES])
            problem = f"{len(foreign):,} of {len(texts):,} {kind} are not {language} ({examples})"
            print(f"Note: this CLIP learned from {language} texts, but {problem}: {advice[language, kind]}")


def is_foreign(text: str, language: str) -> bool:
    """Return whether most letters of ``text`` are not Latin, for English, or are Latin, for another ``language``."""
    is_latin = [unicodedata.name(letter, "").startswith("LATIN") for letter in text if letter.isalpha()]
    share = sum(is_latin) / len(is_latin) if is_latin else 0.5  # a text without letters has no language
    return share < 0.5 if language == "English" else share > 0.5
