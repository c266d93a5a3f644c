"""CLIP: loading its weights, encoding texts, encoding images."""
