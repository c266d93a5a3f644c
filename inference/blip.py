"""What caption, match and ask share: BLIP and BLIP-2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

LONGEST = 512  # tokens; language models that know no longest text (T5) were trained with so many


def kinds(blip: str, blip2: str) -> dict[str, tuple[str, str]]:
    """For :func:`inference.neighbours.load`, the names of the classes of the two kinds of model."""
    return {"blip": (blip, "BlipProcessor"), "blip-2": (blip2, "Blip2Processor")}


def reads_at_most(model) -> int:
    """Tokens of the longest text that the model reads."""
    parts = (getattr(model.config, part, None) for part in ("text_config", "qformer_config"))
    return min(getattr(part, "max_position_embeddings", LONGEST) for part in parts if part is not None)


def prepare(model, processor, picture: Image.Image, texts: Sequence[str] | None):
    """The model's input for one picture and its texts."""
    if getattr(model.config, "image_token_index", None) is not None:  # BLIP-2: tokens that stand for the picture
        # Folders saved by early versions of the library do not say how many; the picture would be left out.
        processor.num_query_tokens = model.config.num_query_tokens
    texts = None if texts is None else list(texts)
    padding = {} if texts is None else {"padding": True}
    return processor(images=picture, text=texts, return_tensors="pt", **padding).to(model.device)


def generate(model, processor, picture: Image.Image, text: str | None, max_tokens: int, with_text: bool) -> str:
    """What the model says of the picture after ``text``, word by word the most probable, and before it the text itself
    if ``with_text``."""
    # One text at a time: BLIP's answers would depend on the padding of a shorter one.
    inputs = prepare(model, processor, picture, None if text is None else [text])
    tokens = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False, num_beams=1)
    if not with_text and repeats_text(model):
        tokens = tokens[:, inputs.input_ids.shape[1] :]
    return processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()


def repeats_text(model) -> bool:
    """Whether what is generated begins with the text that was given: that of BLIP-2 with a decoder-only language model
    does."""
    return getattr(model.config, "use_decoder_only_language_model", False)
