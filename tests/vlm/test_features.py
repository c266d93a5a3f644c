"""Features on disk: they come back as they went in, or not at all."""

import json
import os
import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from dassl.utils import UserError
from tests.common import assert_same_tensors
from vlm.images.extractor import CachedFeatureExtractor
from vlm.images.feature_store import FeatureStore, read_shard

ENCODER = {"weights": "sha", "precision": "float32"}
KEYS = [bytes([i]) * 16 for i in range(5)]
FEATURES = torch.arange(40, dtype=torch.float32).view(5, 8)


def flip(path: Path, at: int) -> None:
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "emptied": lambda path: path.write_bytes(b""),
    "header": lambda path: flip(path, 12),
    "tensors": lambda path: flip(path, -3),
    "deleted": Path.unlink,
}


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path, ENCODER, 1)


def files(store: FeatureStore) -> list[Path]:
    return sorted(store.folder.glob("*.safetensors"))


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def test_features_come_back_as_they_went_in(store, tmp_path):
    assert store.get(KEYS) == {}
    store.put(KEYS, FEATURES)
    assert same(store.get(KEYS), dict(zip(KEYS, FEATURES, strict=True)))
    assert same(store.get([KEYS[3], b"?" * 16]), {KEYS[3]: FEATURES[3]})
    assert json.loads((store.folder / "encoder.json").read_text()) == ENCODER
    half = FeatureStore(tmp_path, {"weights": "half"}, 1)
    half.put(KEYS, FEATURES.bfloat16())
    assert half.get(KEYS)[KEYS[1]].dtype == torch.bfloat16


@pytest.mark.parametrize("known", [True, False], ids=["known", "found"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_removed_and_never_used(store, tmp_path, damage, known):
    store.put(KEYS, FEATURES)
    DAMAGES[damage](files(store)[0])
    reader = store if known else FeatureStore(tmp_path, ENCODER, 1)
    assert reader.get(KEYS) == {}
    assert files(reader) == []
    reader.put(KEYS, FEATURES)
    assert len(reader.get(KEYS)) == 5


def test_no_changed_byte_goes_unnoticed(store):
    store.put(KEYS, FEATURES)
    path = files(store)[0]
    content = path.read_bytes()
    assert read_shard(path, store.encoder) is not None
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        shard = read_shard(path, store.encoder)
        assert shard is None or torch.equal(torch.stack([*shard.values()]), FEATURES), at
        assert path.exists() == (shard is not None)


def test_the_least_recently_used_files_go_first(store, tmp_path):
    other = FeatureStore(tmp_path, {"weights": "other"}, 1)
    for number, where in enumerate([other, store, store]):
        where.put([KEYS[number]], FEATURES[:1])
        os.utime(where._where[KEYS[number]], (number + 1, number + 1))
    assert len(other.get(KEYS[:1])) == 1  # the oldest file, used now
    small = FeatureStore(tmp_path, ENCODER, 3.5 * files(store)[0].stat().st_size / 1e9)
    foreign = tmp_path / "weights" / "model.safetensors"
    foreign.parent.mkdir()
    foreign.write_bytes(b"not of the cache" * 1000)
    os.utime(foreign, (0, 0))
    small.put([KEYS[3]], FEATURES[:1])
    assert set(small.get(KEYS)) == {KEYS[2], KEYS[3]}
    assert len(other.get(KEYS[:1])) == 1
    assert foreign.exists()


def test_two_read_write_and_evict_at_once(tmp_path, capsys):
    def work(number):
        rng = random.Random(number)
        for _ in range(60):
            store = FeatureStore(tmp_path, {}, 8e-6)  # room for some of the files
            keys = rng.sample([bytes([i]) * 16 for i in range(50)], 8)
            found = store.get(keys)
            assert all(torch.equal(feature, torch.full((16,), float(key[0]))) for key, feature in found.items())
            if missing := [key for key in keys if key not in found]:
                store.put(missing, torch.tensor([[float(key[0])] * 16 for key in missing]))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    assert capsys.readouterr().out == ""  # nobody found a damaged file


class Sums:
    """An encoder that adds up an image, and counts."""

    def __init__(self):
        self.count = 0

    def encode(self, images):
        for image in images:
            self.count += 1
            time.sleep(0.001)
            yield image.sum().view(1)


def requests(numbers) -> list:
    def make(number):
        time.sleep(0.002 * (number % 3))  # they are not ready in the order of the requests
        return torch.full((3, 2, 2), float(number))

    return [(number.to_bytes(16, "little"), lambda number=number: make(number)) for number in numbers]


@pytest.mark.parametrize("threads", [1, 4])
def test_each_request_gets_its_own_feature_in_order(store, threads):
    encoder = Sums()
    features = CachedFeatureExtractor(encoder, store)
    numbers = [*range(100, 0, -1), 7, 7]
    assert features(requests(numbers), threads).flatten().tolist() == [12.0 * n for n in numbers]
    assert encoder.count == 100
    assert features(requests(range(130)), threads).flatten().tolist() == [12.0 * n for n in range(130)]
    assert encoder.count == 130
    assert CachedFeatureExtractor(encoder)(requests(range(5)), threads).flatten().tolist() == [0, 12, 24, 36, 48]


def test_who_waits_for_another_does_not_compute_the_same_again(tmp_path):
    encoders = [Sums(), Sums()]

    def work(encoder):
        return CachedFeatureExtractor(encoder, FeatureStore(tmp_path, ENCODER, 1))(requests(range(50)), 2)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(work, encoders))
    assert sorted(encoder.count for encoder in encoders) == [0, 50]
    assert torch.equal(*results)


def test_a_full_disk_does_not_stop_a_run(store, monkeypatch, capsys):
    def full(*_):
        raise UserError("cannot write: No space left on device")

    monkeypatch.setattr(store, "put", full)
    assert CachedFeatureExtractor(Sums(), store)(requests(range(3))).flatten().tolist() == [0, 12, 24]
    assert "features are not kept from here on: cannot write: No space left" in capsys.readouterr().out


def test_a_run_is_the_same_with_or_without_cache_and_after_any_damage(run, tmp_path):
    root = tmp_path / "cache"
    settings = ("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 2, "FEATURES.CACHE_DIR", root)
    settings += ("INPUT.TRANSFORMS", "('random_resized_crop','random_flip','normalize')")

    def lines(result):
        assert result.code == 0, result.error
        return [line for line in result.log.splitlines() if line.startswith("* ") or " is damaged" in line]

    first = run(*settings, out="first")
    expected, stored = lines(first), list(root.glob("*/*.safetensors"))
    assert len(expected) == 5
    for path in stored:
        DAMAGES["tensors"](path)
    damaged = run(*settings, out="damaged")
    cached = run(*settings, out="cached")
    shutil.rmtree(root)
    without = run(*settings, "FEATURES.ENABLED", False, out="without")
    assert not root.exists()
    notes = [line for line in lines(damaged) if " is damaged" in line]
    assert len(notes) == len(stored) > 0
    assert [line for line in lines(damaged) if line not in notes] == expected
    assert lines(cached) == lines(without) == expected
    for other in (damaged, cached, without):
        assert_same_tensors(first.checkpoint(2), other.checkpoint(2))
