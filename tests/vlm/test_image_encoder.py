"""The image encoders: their features are CLIP's, and those of an image do not depend on the images around it."""

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
def fresh():
    """No encoder of another test, and none left to the next."""
    build_image_encoder.cache_clear()
    yield
    build_image_encoder.cache_clear()


def encode(encoder, images) -> torch.Tensor:
    return torch.stack(list(encoder.encode(iter(images))))


def test_features_are_clips(encoder, clip, images):
    expected = clip.encode_image(images)
    features = encode(encoder, images)
    assert features.shape == expected.shape
    assert (features - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_feature_depends_on_its_image_alone(encoder, images):
    features = encode(encoder, images)
    assert len(set(map(tuple, features.tolist()))) == len(images)
    for count in (1, 7, 8, 9, 17):
        assert torch.equal(encode(encoder, images[:count]), features[:count]), count
        assert torch.equal(encode(encoder, images[-count:]), features[-count:]), count
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    assert torch.equal(encode(encoder, images[order]), features[order])
    other = images * 100
    other[3] = images[3]
    assert torch.equal(encode(encoder, other)[3], features[3])
    assert list(encoder.encode(iter([]))) == []


@pytest.mark.parametrize("encoder", ENCODERS[:1], indirect=True)
def test_openvinos_features_do_not_depend_on_the_threads(encoder, clip, images):
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
        next(iter(encoder.encode(iter(images))))  # and one that is not read to its end
        assert torch.equal(encode(encoder, images), expected)


@needs_openvino
def test_the_description_tells_weights_precision_runtime_and_threads_where_they_matter(clip):
    one, other = (kind(clip.visual, "sha", "").description for kind in (OpenVINOEncoder, TorchEncoder))
    assert {key for key in one if one[key] != other[key]} == {"runtime"}
    assert other.keys() - one.keys() == {"threads"}
    assert (one["weights"], one["precision"]) == ("sha", "float32")


def test_the_description_tells_the_versions_of_what_reads_and_prepares_pictures(clip, monkeypatch):
    before = TorchEncoder(clip.visual, "", "").description
    for package in ("torch", "torchvision", "pillow"):
        monkeypatch.setattr("vlm.images.encoder.version", lambda name: "99" if name == package else version(name))  # noqa: B023
        assert TorchEncoder(clip.visual, "", "").description != before


@needs_openvino
def test_bf16_is_refused_where_the_processor_lacks_it(run, fresh, monkeypatch):
    core = SimpleNamespace(get_property=lambda *_: ["FP32", "INT8"])
    monkeypatch.setattr("vlm.images.encoder._import_openvino", lambda: SimpleNamespace(Core=lambda: core))
    result = run("--eval-only", "USE_CUDA", False, "FEATURES.PREC", "bf16", trainer="ZeroshotCLIP")
    assert result.code == 2
    assert result.error.startswith("error: FEATURES.PREC is bf16, but this processor has no bfloat16")


def test_bf16_is_refused_on_a_processor_without_openvino(run, fresh, monkeypatch):
    monkeypatch.setattr("vlm.images.encoder._has_openvino", lambda: False)
    for precision, message in (("bf16", "bf16 needs OpenVINO on a CPU: pip install openvino"), ("fp8", '"fp8"')):
        result = run("--eval-only", "USE_CUDA", False, "FEATURES.PREC", precision, trainer="ZeroshotCLIP")
        assert result.code == 2
        assert message in result.error
