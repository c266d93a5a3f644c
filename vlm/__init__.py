"""CLIP as it is used here: loading, text, images."""
