"""Model inputs and text generation for BLIP and BLIP-2, shared by caption, match and ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


def prepare_inputs(model, processor, picture: Image.Image, texts: list[str] | None):
    """Return a dict of inputs of a BLIP or BLIP-2 ``model``, on its device, for one picture and several texts.

    ``pixel_values`` is (1, 3, height, width), ``input_ids`` (texts, tokens). ``texts`` None: the picture alone.
    ``processor`` is the model's, from ``inference.transformers_models.load_model``.
    """
    if getattr(model.config, "image_token_index", None) is not None:  # BLIP-2: image tokens stand before the text
        # Processors that early versions of transformers saved lack this number; the model would then see no image.
        processor.num_query_tokens = model.config.num_query_tokens
    padding = {} if texts is None else {"padding": True}
    return processor(images=picture, text=texts, return_tensors="pt", **padding).to(model.device)


def generate_text(
    model, processor, picture: Image.Image, prompt: str | None, max_tokens: int, return_full_text: bool
) -> str:
    """Return the text that a BLIP or BLIP-2 ``model`` generates for the picture, greedily, with ``processor``.

    The text continues or answers ``prompt`` (None: no prompt) by at most ``max_tokens`` tokens. Without
    ``return_full_text``, the prompt that some BLIP-2 models repeat is cut off.
    """
    # One prompt at a time: BLIP's answers would depend on the padding of a shorter prompt.
    inputs = prepare_inputs(model, processor, picture, None if prompt is None else [prompt])
    tokens = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False, num_beams=1)
    # BLIP-2 with a decoder-only language model repeats the prompt in its output.
    if not return_full_text and getattr(model.config, "use_decoder_only_language_model", False):
        tokens = tokens[:, inputs.input_ids.shape[1] :]
    return processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()
