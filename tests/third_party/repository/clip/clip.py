import torch
from torch import nn

from .simple_tokenizer import SimpleTokenizer

_tokenizer = SimpleTokenizer()


class CLIP(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.visual = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, width))
        self.token_embedding = nn.Embedding(64, width)
        self.text_projection = nn.Linear(width, width)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_image(self, image):
        return self.visual(image)


def load(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return CLIP().eval()


def tokenize(text, context_length=24):
    tokens = [62, *_tokenizer.encode(text), 63]
    return torch.tensor([tokens + [0] * (context_length - len(tokens))])
