"""What caption, match and ask share: BLIP and BLIP-2."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


def prepare_inputs(model, processor, picture: Image.Image, texts: list[str] | None):
    """Return the model's input for one picture and its texts."""
    if getattr(model.config, "image_token_index", None) is not None:  # BLIP-2: tokens that stand for the picture
        # Folders saved by early versions of the library do not say how many; the picture would be left out.
        processor.num_query_tokens = model.config.num_query_tokens
    padding = {} if texts is None else {"padding": True}
    return processor(images=picture, text=texts, return_tensors="pt", **padding).to(model.device)


def generate_text(model, processor, picture: Image.Image, text: str | None, max_tokens: int, with_text: bool) -> str:
    """Return what the model says of the picture after ``text``, word by word the most probable.

    With ``with_text``, the text itself comes before it.
    """
    # One text at a time: BLIP's answers would depend on the padding of a shorter one.
    inputs = prepare_inputs(model, processor, picture, None if text is None else [text])
    tokens = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False, num_beams=1)
    # BLIP-2 with a decoder-only language model repeats the text that it was given.
    if not with_text and getattr(model.config, "use_decoder_only_language_model", False):
        tokens = tokens[:, inputs.input_ids.shape[1] :]
    return processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()
