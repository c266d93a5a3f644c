"""CLIP as this project uses it: weights, prompts, text encoder, templates, and a tiny CLIP of its own."""
