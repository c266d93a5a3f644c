"""The feature cache and the extractor: a feature is read as it was written, or computed again."""

import json
import os
import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dassl.utils import UserError
from tests.common import assert_same_tensors
from vlm.images.extractor import CachedFeatureExtractor
from vlm.images.feature_store import FeatureStore, read_shard
from vlm.tiny.weights import load_tiny

ENCODER = {"weights": "sha", "precision": "float32"}
KEYS = [bytes([i]) * 16 for i in range(5)]
FEATURES = torch.arange(40, dtype=torch.float32).view(5, 8)


def flip_bit(path: Path, offset: int) -> None:
    """Flip a bit of the byte at ``offset``."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "emptied": lambda path: path.write_bytes(b""),
    "header": lambda path: flip_bit(path, 12),
    "tensors": lambda path: flip_bit(path, -3),
    "deleted": Path.unlink,
}


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path, ENCODER, 1)


def list_shards(store: FeatureStore) -> list[Path]:
    return sorted(store.folder.glob("*.safetensors"))


def are_equal(actual: dict, expected: dict) -> bool:
    return actual.keys() == expected.keys() and all(torch.equal(actual[key], expected[key]) for key in actual)


def test_features_are_read_as_they_were_written(store, tmp_path):
    assert store.get(KEYS) == {}
    store.put(KEYS, FEATURES)
    assert are_equal(store.get(KEYS), dict(zip(KEYS, FEATURES, strict=True)))
    assert are_equal(store.get([KEYS[3], b"?" * 16]), {KEYS[3]: FEATURES[3]})
    assert json.loads((store.folder / "encoder.json").read_text()) == ENCODER
    half = FeatureStore(tmp_path, {"weights": "half"}, 1)
    half.put(KEYS, FEATURES.bfloat16())
    assert half.get(KEYS)[KEYS[1]].dtype == torch.bfloat16


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "scanned"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_removed_and_never_used(store, tmp_path, damage, is_known):
    store.put(KEYS, FEATURES)
    DAMAGES[damage](list_shards(store)[0])
    reader = store if is_known else FeatureStore(tmp_path, ENCODER, 1)
    assert reader.get(KEYS) == {}
    assert list_shards(reader) == []
    reader.put(KEYS, FEATURES)
    assert len(reader.get(KEYS)) == 5


def test_a_shard_with_any_changed_bit_is_refused_or_has_the_same_features(store):
    store.put(KEYS, FEATURES)
    path = list_shards(store)[0]
    content = path.read_bytes()
    assert read_shard(path, store.encoder) is not None
    for offset in range(len(content)):
        changed = bytearray(content)
        changed[offset] ^= 1 << offset % 8
        path.write_bytes(changed)
        shard = read_shard(path, store.encoder)
        assert shard is None or torch.equal(torch.stack([*shard.values()]), FEATURES), offset
        assert path.exists() == (shard is not None)


def test_the_least_recently_used_shards_are_removed_first(store, tmp_path):
    other = FeatureStore(tmp_path, {"weights": "other"}, 1)
    for number, writer in enumerate([other, store, store]):
        writer.put([KEYS[number]], FEATURES[:1])
        os.utime(writer._paths[KEYS[number]], (number + 1, number + 1))
    assert len(other.get(KEYS[:1])) == 1  # the oldest shard, used now
    small = FeatureStore(tmp_path, ENCODER, 3.5 * list_shards(store)[0].stat().st_size / 1e9)
    foreign = tmp_path / "weights" / "model.safetensors"
    foreign.parent.mkdir()
    foreign.write_bytes(b"not of the cache" * 1000)
    os.utime(foreign, (0, 0))
    small.put([KEYS[3]], FEATURES[:1])
    assert set(small.get(KEYS)) == {KEYS[2], KEYS[3]}
    assert len(other.get(KEYS[:1])) == 1
    assert foreign.exists()


def test_two_threads_can_read_write_and_evict_at_the_same_time(tmp_path, capsys):
    def work(number):
        rng = random.Random(number)
        for _ in range(60):
            store = FeatureStore(tmp_path, {}, 8e-6)  # room for some of the shards
            keys = rng.sample([bytes([i]) * 16 for i in range(50)], 8)
            cached = store.get(keys)
            assert all(torch.equal(feature, torch.full((16,), float(key[0]))) for key, feature in cached.items())
            if missing := [key for key in keys if key not in cached]:
                store.put(missing, torch.tensor([[float(key[0])] * 16 for key in missing]))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    assert capsys.readouterr().out == ""  # no shard was damaged


class SumEncoder:
    """An encoder whose feature is the sum of the image's values; it counts the images."""

    def __init__(self):
        self.count = 0

    def encode(self, images):
        for image in images:
            self.count += 1
            time.sleep(0.001)
            yield image.sum().view(1)


def build_requests(numbers) -> list:
    def load(number):
        time.sleep(0.002 * (number % 3))  # so images become ready in another order than requested
        return torch.full((3, 2, 2), float(number))

    return [(number.to_bytes(16, "little"), lambda number=number: load(number)) for number in numbers]


@pytest.mark.parametrize("threads", [1, 4])
def test_features_are_in_the_order_of_the_requests(store, threads):
    encoder = SumEncoder()
    features = CachedFeatureExtractor(encoder, store)
    numbers = [*range(100, 0, -1), 7, 7]
    assert features(build_requests(numbers), threads).flatten().tolist() == [12.0 * n for n in numbers]
    assert encoder.count == 100
    assert features(build_requests(range(130)), threads).flatten().tolist() == [12.0 * n for n in range(130)]
    assert encoder.count == 130
    assert CachedFeatureExtractor(encoder)(build_requests(range(5)), threads).flatten().tolist() == [0, 12, 24, 36, 48]


def test_a_process_that_waited_for_the_lock_does_not_compute_the_same_features_again(tmp_path):
    encoders = [SumEncoder(), SumEncoder()]

    def work(encoder):
        return CachedFeatureExtractor(encoder, FeatureStore(tmp_path, ENCODER, 1))(build_requests(range(50)), 2)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(work, encoders))
    assert sorted(encoder.count for encoder in encoders) == [0, 50]
    assert torch.equal(*results)


def test_a_full_disk_does_not_stop_a_run(store, monkeypatch, capsys):
    def full(*_):
        raise UserError("cannot write: No space left on device")

    monkeypatch.setattr(store, "put", full)
    assert CachedFeatureExtractor(SumEncoder(), store)(build_requests(range(3))).flatten().tolist() == [0, 12, 24]
    assert "features are not kept from here on: cannot write: No space left" in capsys.readouterr().out


class ConstantEncoder:
    """An encoder whose features are ``value`` for all images, but for a second value from the image ``turn`` on."""

    def __init__(self, value: float, turn: int = 10**6):
        self.value, self.turn = value, turn

    def encode(self, images):
        for number, _ in enumerate(images):
            yield torch.tensor([self.value if number < self.turn else 2.0])


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (ConstantEncoder(1.0), "all test images have the same feature, though they differ"),
        (ConstantEncoder(torch.nan), "a feature of the test images is NaN or infinite"),
        (ConstantEncoder(torch.inf), "a feature of the test images is NaN or infinite"),
    ],
)
def test_features_that_no_working_encoder_computes_are_refused_and_not_kept(store, encoder, message):
    with pytest.raises(UserError, match=message):
        CachedFeatureExtractor(encoder, store)(build_requests(range(600)), 1, "test images")
    assert list_shards(store) == []


def test_equal_features_of_equal_images_are_kept(store):
    """Files that differ, such as a scan and its copy in another format, may show the same."""
    requests = [(key, lambda: torch.ones(3, 2, 2)) for key in KEYS]
    assert CachedFeatureExtractor(SumEncoder(), store)(requests).flatten().tolist() == [12] * 5
    assert len(store.get(KEYS)) == 5


def test_equal_features_that_an_earlier_version_kept_are_refused_unless_the_images_are_equal(store):
    requests = build_requests(range(3))
    store.put([key for key, _ in requests], torch.ones(3, 1))
    with pytest.raises(UserError, match=r"all val images have the same stored feature.*features.py rm"):
        CachedFeatureExtractor(SumEncoder(), store)(requests, 1, "val images")
    equal = [(key, lambda: torch.ones(3, 2, 2)) for key, _ in requests]
    assert CachedFeatureExtractor(SumEncoder(), store)(equal).flatten().tolist() == [1] * 3
    assert CachedFeatureExtractor(SumEncoder(), store)(requests[:1]).flatten().tolist() == [1]


def test_a_few_images_with_the_same_feature_beside_others_are_kept(store):
    requests = build_requests(range(600))
    assert len(CachedFeatureExtractor(ConstantEncoder(1.0, turn=599), store)(requests)) == 600
    assert len(store.get([key for key, _ in requests])) == 600
    more = build_requests(range(598, 602))  # two are new, and their features equal that of image 599, not of image 598
    assert len(CachedFeatureExtractor(ConstantEncoder(2.0), store)(more)) == 4


def test_constant_features_from_the_runtime_end_a_run_and_are_not_kept(run, tmp_path, monkeypatch):
    """OpenVINO turns NaN into finite numbers; here as if the weights had been damaged after they were loaded."""
    monkeypatch.setattr("vlm.clip.load.check_finite", lambda *_: None, raising=False)
    weights, root = load_tiny(), tmp_path / "cache"
    weights["visual.bn3.weight"].fill_(torch.nan)
    save_file(weights, tmp_path / "w.safetensors")
    options = ("MODEL.BACKBONE.WEIGHTS", tmp_path / "w.safetensors", "FEATURES.CACHE_DIR", root)
    result = run("--eval-only", *options, trainer="ZeroshotCLIP")
    assert result.code == 2
    problem = "have the same feature, though they differ (" if find_spec("openvino") else "is NaN or infinite ("
    assert problem in result.error
    assert "The weights are damaged" in result.error
    assert not list(root.glob("*/*.safetensors"))
    assert not (result.folder / "result.json").exists()


def test_a_run_is_bit_for_bit_the_same_with_and_without_the_cache_and_with_damaged_shards(run, tmp_path):
    root = tmp_path / "cache"
    overrides = ("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 2, "FEATURES.CACHE_DIR", root)
    overrides += ("INPUT.TRANSFORMS", "('random_resized_crop','random_flip','normalize')")

    def result_lines(result):
        assert result.code == 0, result.error
        return [line for line in result.log.splitlines() if line.startswith("* ") or " is damaged" in line]

    first = run(*overrides, out="first")
    expected, stored = result_lines(first), list(root.glob("*/*.safetensors"))
    assert len(expected) == 5
    for path in stored:
        DAMAGES["tensors"](path)
    damaged = run(*overrides, out="damaged")
    cached = run(*overrides, out="cached")
    shutil.rmtree(root)
    without = run(*overrides, "FEATURES.ENABLED", False, out="without")
    assert not root.exists()
    notes = [line for line in result_lines(damaged) if " is damaged" in line]
    assert len(notes) == len(stored) > 0
    assert [line for line in result_lines(damaged) if line not in notes] == expected
    assert result_lines(cached) == result_lines(without) == expected
    for other in (damaged, cached, without):
        assert_same_tensors(first.checkpoint(2), other.checkpoint(2))
