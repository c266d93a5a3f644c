class SimpleTokenizer:
    """A token for each letter."""

    def encode(self, text):
        return [1 + ord(letter) % 60 for letter in text.lower()]
