class SimpleTokenizer:
    """Encodes each letter as one token."""

    def encode(self, text):
        return [1 + ord(letter) % 60 for letter in text.lower()]
