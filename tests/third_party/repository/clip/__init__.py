"""A stand-in for the copy of OpenAI's package in these repositories: random weights, images of 8 pixels."""
