"""Loading of CLIPs by name and from weights files in the three formats; refused files."""

import hashlib
import os
import struct
import warnings

import pytest
import torch
from safetensors.torch import save_file

from dassl.utils import UserError
from vlm import openai
from vlm.clip import load as load_module
from vlm.clip.fingerprint import weights_fingerprint
from vlm.clip.load import get_openai_weights, load_cached_clip, load_clip


@pytest.fixture(scope="module")
def clip():
    """A small CLIP, with a vision transformer."""
    torch.manual_seed(0)
    model = openai.CLIP(32, 32, 2, 64, 16, 77, 300, 64, 1, 2)
    openai.convert_weights(model)
    return model.eval()


def save_torchscript(clip, path):
    """Save an archive like OpenAI's: a traced module with CLIP's parameter names and its three extra buffers."""

    class Archive(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.visual, self.transformer = clip.visual, clip.transformer
            self.token_embedding, self.ln_final = clip.token_embedding, clip.ln_final
            self.positional_embedding, self.text_projection = clip.positional_embedding, clip.text_projection
            self.logit_scale = clip.logit_scale
            for name, value in {"input_resolution": 32, "context_length": 77, "vocab_size": 300}.items():
                self.register_buffer(name, torch.tensor(value))

        def forward(self, x):
            return self.logit_scale * x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Archive(), torch.ones(1)), path)


@pytest.mark.parametrize("kind", ["safetensors", "state_dict", "nested", "torchscript"])
def test_every_format_gives_the_same_clip(clip, tmp_path, kind, monkeypatch):
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    state_dict = clip.state_dict()
    if kind == "safetensors":
        save_file(state_dict, path)
    elif kind == "torchscript":
        save_torchscript(clip, path)
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setitem(openai.URLS, "made", f"https://example.org/{checksum}/made.pt")  # as if it were OpenAI's
    else:
        torch.save({"state_dict": state_dict} if kind == "nested" else state_dict, path)
    loaded, tensors = load_clip("RN50", str(path))
    assert weights_fingerprint(tensors) == weights_fingerprint(state_dict)  # independent of the format
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded.encode_image(image), clip.float().encode_image(image))


def test_an_overwritten_weights_file_of_the_same_size_is_loaded_again(clip, tmp_path):
    state_dict, path, fingerprints = clip.state_dict(), tmp_path / "clip.safetensors", []
    for number, scale in enumerate((1.0, 2.0, 2.0)):
        save_file({**state_dict, "logit_scale": torch.tensor(scale)}, path)
        os.utime(path, (number, number))
        fingerprints.append(load_cached_clip("", str(path), "fp32", "cpu")[1])
    assert fingerprints[0] != fingerprints[1] == fingerprints[2]


def test_the_fingerprint_is_the_documented_digest():
    """SHA-256 over the sorted keys, each followed by its values in fp32."""
    state_dict = {"b": torch.tensor([[1.0, -2.0]]), "a": torch.tensor(0.5, dtype=torch.float16)}
    documented = b"a" + struct.pack("<f", 0.5) + b"b" + struct.pack("<2f", 1, -2)
    assert weights_fingerprint(state_dict) == hashlib.sha256(documented).hexdigest()


def test_half_precision_becomes_single_on_a_cpu(capsys):
    half, _ = load_clip("tiny", precision="fp16")
    assert "fp16 becomes fp32" in capsys.readouterr().out
    single, _ = load_clip("tiny", precision="fp32")
    assert capsys.readouterr().out == ""
    assert half.dtype == single.dtype == torch.float32


@pytest.fixture
def offline_cache(tmp_path, monkeypatch):
    """An empty folder for weights, without a network."""
    monkeypatch.setattr(load_module, "CACHE_DIR", tmp_path)

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    return tmp_path


def test_without_a_network_the_message_says_what_to_download_and_where_to_put_it(offline_cache):
    with pytest.raises(UserError) as error:
        load_clip("ViT-B/16")
    url = openai.URLS["ViT-B/16"]
    for text in (url, url.split("/")[-2], str(offline_cache / "ViT-B-16.pt"), "MODEL.BACKBONE.WEIGHTS", "no network"):
        assert text in str(error.value)


def test_a_downloaded_file_is_used_unless_it_is_damaged(offline_cache, monkeypatch):
    path, digest = offline_cache / "mine.pt", hashlib.sha256(b"content").hexdigest()
    monkeypatch.setitem(openai.URLS, "mine", f"https://example.org/{digest}/mine.pt")
    path.write_bytes(b"content")
    assert get_openai_weights("mine") == path
    path.write_bytes(b"conte")
    with pytest.raises(UserError, match="is damaged"):
        get_openai_weights("mine")


def test_a_file_without_clip_weights_is_refused(tmp_path):
    for content, message in (
        ([torch.ones(2)], "is not a state dict"),
        ({"a": 1}, "is not a state dict"),
        ({"fc.weight": torch.ones(2, 2)}, "does not hold the weights of a CLIP"),
    ):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(UserError, match=message):
            load_clip("RN50", str(tmp_path / "w.pt"))
    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(UserError, match="cannot be read as weights"):
            load_clip("RN50", str(tmp_path / name))
