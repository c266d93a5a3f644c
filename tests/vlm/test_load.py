"""Weights by name and from files of the three formats; what is refused."""

import hashlib
import os
import struct
import warnings

import pytest
import torch
from safetensors.torch import save_file

from dassl.utils import UserError
from tools.random_weights import random_clip
from vlm import openai
from vlm.clip import load as load_module
from vlm.clip.fingerprint import fingerprint
from vlm.clip.load import load, load_shared, openai_file, read_state_dict


@pytest.fixture(scope="module")
def clip():
    """A small CLIP, with a vision transformer."""
    torch.manual_seed(0)
    model = openai.CLIP(32, 32, 2, 64, 16, 77, 300, 64, 1, 2)
    openai.convert_weights(model)
    return model.eval()


def as_torchscript(clip, path):
    """An archive like OpenAI's: a scripted module with CLIP's parameter names and its three extra buffers."""

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


@pytest.fixture
def publish(monkeypatch):
    """Make a file count as one of OpenAI's."""

    def add(path):
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setitem(openai.URLS, "made", f"https://example.org/{checksum}/made.pt")

    return add


def test_torchscript_of_others_is_not_opened(clip, tmp_path, monkeypatch):
    """Loading it would run its code."""
    as_torchscript(clip, tmp_path / "w.pt")
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(UserError, match="TorchScript archive, which can hold any code"):
        read_state_dict(tmp_path / "w.pt")


@pytest.mark.parametrize("content", [[torch.ones(2)], {"a": 1}, torch.ones(2)])
def test_a_file_that_is_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match="is not a state dict"):
        read_state_dict(tmp_path / "w.pt")


@pytest.mark.parametrize("kind", ["safetensors", "state_dict", "nested", "torchscript"])
def test_every_format_gives_the_same_clip(clip, tmp_path, kind, publish):
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    state_dict = clip.state_dict()
    if kind == "safetensors":
        save_file(state_dict, path)
    elif kind == "torchscript":
        as_torchscript(clip, path)
        publish(path)
    else:
        torch.save({"state_dict": state_dict} if kind == "nested" else state_dict, path)
    loaded, tensors = load("RN50", str(path))
    assert fingerprint(tensors) == fingerprint(state_dict)  # which does not depend on the format
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded.encode_image(image), clip.float().encode_image(image))


def test_the_fingerprint_belongs_to_the_numbers(clip, tmp_path):
    state_dict = clip.state_dict()
    shuffled = dict(reversed([(k, v.clone()) for k, v in state_dict.items()]))
    assert fingerprint(shuffled) == fingerprint(state_dict)
    shuffled["logit_scale"] += 1e-3
    assert fingerprint(shuffled) != fingerprint(state_dict)


def test_another_file_of_as_many_bytes_is_loaded(clip, tmp_path):
    state_dict, path, prints = clip.state_dict(), tmp_path / "clip.safetensors", []
    for number, scale in enumerate((1.0, 2.0, 2.0)):
        save_file({**state_dict, "logit_scale": torch.tensor(scale)}, path)
        os.utime(path, (number, number))
        prints.append(load_shared("", str(path), "fp32", "cpu")[1])
    assert prints[0] != prints[1] == prints[2]


def test_the_fingerprint_is_as_documented():
    """SHA-256 over the keys in sorted order, each followed by its values in fp32."""
    state_dict = {"b": torch.tensor([[1.0, -2.0]]), "a": torch.tensor(0.5, dtype=torch.float16)}
    documented = b"a" + struct.pack("<f", 0.5) + b"b" + struct.pack("<2f", 1, -2)
    assert fingerprint(state_dict) == hashlib.sha256(documented).hexdigest()


def test_half_precision_becomes_single_on_a_cpu(capsys):
    half, _ = load("tiny", precision="fp16")
    assert "fp16 becomes fp32" in capsys.readouterr().out
    single, _ = load("tiny", precision="fp32")
    assert capsys.readouterr().out == ""
    assert half.dtype == single.dtype == torch.float32


@pytest.mark.parametrize("name", ["RN50", "ViT-B/32"])
def test_random_weights_have_the_published_shapes(name):
    """The shapes are those that OpenAI's own constructor reads back, at the input size of the published model."""
    state_dict = random_clip(name, seed=0)
    assert openai.build_model(dict(state_dict)).visual.input_resolution == 224
    assert state_dict["text_projection"].shape == {"RN50": (512, 1024), "ViT-B/32": (512, 512)}[name]
    assert state_dict["token_embedding.weight"].shape == (49408, 512)


def test_openais_nine_names():
    assert set(openai.URLS) == {
        *("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px")
    }


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(load_module, "CACHE", tmp_path)

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    return tmp_path


def test_offline_says_what_to_fetch_and_where_to_put_it(cache):
    with pytest.raises(UserError) as error:
        load("ViT-B/16")
    url = openai.URLS["ViT-B/16"]
    for part in (url, url.split("/")[-2], str(cache / "ViT-B-16.pt"), "MODEL.BACKBONE.WEIGHTS", "no network"):
        assert part in str(error.value)


def test_a_damaged_download_is_not_used(cache):
    (cache / "RN50.pt").write_bytes(b"half a file")
    with pytest.raises(UserError, match="is damaged"):
        openai_file("RN50")


def test_a_whole_download_is_used(cache, monkeypatch):
    (cache / "mine.pt").write_bytes(b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    monkeypatch.setitem(openai.URLS, "mine", f"https://example.org/{digest}/mine.pt")
    assert openai_file("mine") == cache / "mine.pt"


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_file_that_holds_no_weights(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"not weights at all")
    with pytest.raises(UserError, match="cannot be read as weights"):
        load("RN50", str(path))


def test_weights_of_something_else(tmp_path):
    torch.save({"fc.weight": torch.ones(2, 2)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="does not hold the weights of a CLIP"):
        load("RN50", str(tmp_path / "w.pt"))


def test_code_in_a_file_of_weights_is_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (tmp_path.joinpath("executed").touch, ())

    torch.save({"state_dict": Hostile()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="cannot be read as weights"):
        load("RN50", str(tmp_path / "w.pt"))
    assert not (tmp_path / "executed").exists()
