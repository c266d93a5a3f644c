"""The image encoders: features equal CLIP's, and the feature of an image does not depend on other images."""

from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch

from vlm.clip.load import load_clip
from vlm.images.encoder import OpenVINOEncoder, TorchEncoder, _has_openvino, build_image_encoder

needs_openvino = pytest.mark.skipif(not _has_openvino(), reason="OpenVINO is not installed")
ENCODERS = [pytest.param(OpenVINOEncoder, marks=needs_openvino), TorchEncoder]


@pytest.fixture(scope="module")
def clip():
    return load_clip("tiny")[0]


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request, clip):
    return request.param(clip.visual, "", "")


@pytest.fixture(scope="module")
def images():
    return torch.randn(21, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def empty_cache():
    """Empty the cache of image encoders before and after the test."""
    build_image_encoder.cache_clear()
    yield
    build_image_encoder.cache_clear()


def encode(encoder, images) -> torch.Tensor:
    return torch.stack(list(encoder.encode(iter(images))))


def test_features_equal_those_of_clip(encoder, clip, images):
    expected = clip.encode_image(images)
    features = encode(encoder, images)
    assert features.shape == expected.shape
    assert (features - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_feature_does_not_depend_on_other_images(encoder, images):
    features = encode(encoder, images)
    assert len(set(map(tuple, features.tolist()))) == len(images)
    for count in (1, 7, 8, 9, 17):
        assert torch.equal(encode(encoder, images[:count]), features[:count]), count
        assert torch.equal(encode(encoder, images[-count:]), features[-count:]), count
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    assert torch.equal(encode(encoder, images[order]), features[order])
    scaled = images * 100
    scaled[3] = images[3]
    assert torch.equal(encode(encoder, scaled)[3], features[3])
    assert list(encoder.encode(iter([]))) == []


@pytest.mark.parametrize("encoder", ENCODERS[:1], indirect=True)
def test_features_of_openvino_do_not_depend_on_the_number_of_threads(encoder, clip, images):
    features, threads = encode(encoder, images), torch.get_num_threads() + 1
    torch.set_num_threads(threads)
    other = OpenVINOEncoder(clip.visual, "", "")
    assert torch.equal(encode(other, images), features)
    assert len(other._requests) == threads


def test_an_encoder_can_be_used_again_after_a_failure(encoder, images):
    expected = encode(encoder, images)

    def broken():
        yield from images[:20]
        raise ValueError("broken")

    for _ in range(3):
        with pytest.raises(ValueError, match="broken"):
            list(encoder.encode(broken()))
        next(iter(encoder.encode(iter(images))))  # an iterator that is not exhausted
        assert torch.equal(encode(encoder, images), expected)


@needs_openvino
def test_the_description_has_weights_precision_and_runtime_and_for_pytorch_sums(clip):
    openvino, pytorch = (kind(clip.visual, "sha", "").description for kind in (OpenVINOEncoder, TorchEncoder))
    assert {key for key in openvino if openvino[key] != pytorch[key]} == {"runtime"}
    assert pytorch.keys() - openvino.keys() == {"sums"}
    assert (openvino["weights"], openvino["precision"]) == ("sha", "float32")


def test_the_description_has_the_versions_of_the_packages_that_read_and_preprocess_images(clip, monkeypatch):
    before = TorchEncoder(clip.visual, "", "").description
    for package in ("torch", "torchvision", "pillow"):
        monkeypatch.setattr("vlm.images.encoder.version", lambda name: "99" if name == package else version(name))  # noqa: B023
        assert TorchEncoder(clip.visual, "", "").description != before


@needs_openvino
def test_bf16_is_refused_on_a_processor_without_bfloat16(run, empty_cache, monkeypatch):
    core = SimpleNamespace(get_property=lambda *_: ["FP32", "INT8"])
    monkeypatch.setattr("vlm.images.encoder._import_openvino", lambda: SimpleNamespace(Core=lambda: core))
    result = run("--eval-only", "USE_CUDA", False, "FEATURES.PREC", "bf16", trainer="ZeroshotCLIP")
    assert result.code == 2
    assert result.error.startswith("error: FEATURES.PREC is bf16, but this processor has no bfloat16")


def test_bf16_is_refused_on_a_processor_without_openvino(run, empty_cache, monkeypatch):
    monkeypatch.setattr("vlm.images.encoder._has_openvino", lambda: False)
    for precision, message in (("bf16", "bf16 needs OpenVINO on a CPU: pip install openvino"), ("fp8", '"fp8"')):
        result = run("--eval-only", "USE_CUDA", False, "FEATURES.PREC", precision, trainer="ZeroshotCLIP")
        assert result.code == 2
        assert message in result.error
