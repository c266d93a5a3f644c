"""vlm/feature_set.py: features in shards that are written in parts, read through memory maps, believed if whole."""

import json
import os
import re
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open

from benchmarks.feature_set import room, simulate
from dassl.utils import UserError
from vlm import feature_set
from vlm.feature_set import LISTING, Description, FeatureSet, describe
from vlm.feature_shard import KEPT_EVERY, PAGE, ShardFormat, ShardWriter

CLASSES = [("cat", 40), ("dog", 0), ("red panda", 61)]
IMAGES, DIM, SHARDS = 101, 24, 4
BAD = 30
FEATURES = torch.randn(IMAGES, DIM, generator=torch.Generator().manual_seed(0)) * 10
LABELS = [0] * 40 + [2] * 61


def paths():
    return [f"photos/{number}.jpg" for number in range(IMAGES - 1)] + [os.fsdecode(b"photos/caf\xe9 \x01.jpg")]


@pytest.fixture
def told(tmp_path) -> Description:
    """A set that has been begun; its shards have 25, 25, 25 and 26 images."""
    describe(tmp_path, {"dim": DIM, "shards": SHARDS}, CLASSES, paths(), "python extract IT KEY VALUE")
    return Description(tmp_path)


def write(told, *shards):
    for shard in shards:
        writer = ShardWriter(told.folder / ".part", told.form(shard))
        for row, image in enumerate(told.rows(shard)):
            writer.leave_out(row) if image == BAD else writer.put(row, FEATURES[image])
        writer.finish(told.path(shard))


def change(told, edit):
    path = told.folder / "set.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_features_labels_and_paths_come_back_whatever_shard_they_are_in(told):
    write(told, 4, 2, 1, 3)
    features = FeatureSet(told.folder)
    assert (len(features), features.dim, features.classnames) == (IMAGES, DIM, ["cat", "dog", "red panda"])
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1)).tolist()
    order.remove(BAD)
    torch.testing.assert_close(features.features(order), FEATURES[order], rtol=2**-11, atol=1e-7)
    assert features.features(torch.tensor(order)).dtype == torch.float32
    assert features.labels(order).tolist() == [LABELS[i] for i in order]
    assert features.paths([100, 0, 26]) == [paths()[100], paths()[0], paths()[26]]
    assert features.features([]).shape == (0, DIM)
    for outside in (-1, IMAGES):
        with pytest.raises(IndexError, match="0 to 100"):
            features.features([outside])


def test_an_image_without_a_feature_is_named_and_skipped(told):
    write(told, 1, 2, 3, 4)
    features = FeatureSet(told.folder)
    with pytest.raises(UserError, match="image 30 "):
        features.features([29, BAD, 31])
    assert features.has([29, BAD, 31]).tolist() == [True, False, True]
    blocks = list(features.blocks(10))
    assert max(len(block) for block, _ in blocks) == 10
    expected = [i for i in range(IMAGES) if i != BAD]
    torch.testing.assert_close(torch.cat([block for block, _ in blocks]), features.features(expected), rtol=0, atol=0)
    assert torch.cat([labels for _, labels in blocks]).tolist() == [LABELS[i] for i in expected]


def test_few_shots_are_of_their_classes_and_follow_from_the_seed(told):
    write(told, 1, 2, 3, 4)
    features = FeatureSet(told.folder)
    drawn = features.few_shot(8, seed=1)
    assert features.labels(drawn).tolist() == [0] * 8 + [2] * 8
    assert len({*drawn.tolist()}) == 16
    assert torch.equal(drawn, FeatureSet(told.folder).few_shot(8, seed=1))
    assert not torch.equal(drawn, features.few_shot(8, seed=2))
    everything = features.few_shot(61, seed=1)
    assert sorted(everything.tolist()) == [i for i in range(IMAGES) if i != BAD]
    assert all(BAD not in features.few_shot(39, seed).tolist() for seed in range(20))
    assert {len(features.few_shot(39, seed)) for seed in range(20)} == {39 + 39}
    with pytest.raises(UserError, match="shots"):
        features.few_shot(0, seed=1)


def test_a_set_is_opened_in_part_only_on_request(told):
    with pytest.raises(UserError, match="lacks 4 of 4 shards"):
        FeatureSet(told.folder, partial=True)
    write(told, 1, 3)
    with pytest.raises(UserError, match=r"lacks 2 of 4 shards: 2, 4\..*python extract IT"):
        FeatureSet(told.folder)
    features = FeatureSet(told.folder, partial=True)
    assert features.has(range(IMAGES)).tolist() == [i < 25 or 50 <= i < 75 for i in range(IMAGES)]
    drawn = features.few_shot(20, seed=1)
    assert features.labels(drawn).tolist() == [0] * 20 + [2] * 20
    assert bool(features.has(drawn).all())
    assert sum(len(block) for block, _ in features.blocks()) == 50
    with pytest.raises(UserError, match="image 30 .*no feature"):
        features.features([30])


def test_others_read_a_shard_as_safetensors(told):
    write(told, 2)
    with safe_open(told.path(2), framework="pt") as file:
        assert torch.equal(file.get_tensor("features")[0], FEATURES[25].half())
        assert file.get_tensor("status").tolist() == [2 * (image == BAD) for image in range(25, 50)]
        assert file.metadata()["set"] == told.id
    assert told.path(2).stat().st_size == PAGE + 25 * (2 * DIM + 1)


def test_a_killed_writer_is_followed_by_one_that_goes_on(tmp_path, monkeypatch):
    """Nothing after the last sync is believed; what was synced is not asked for again."""
    form = ShardFormat(2 * KEPT_EVERY, DIM, "owner")
    features = torch.randn(form.rows, DIM)
    killed = ShardWriter(tmp_path / "part", form)
    for row in range(KEPT_EVERY + 7):
        killed.put(row, features[row])
    del killed  # without close
    second = ShardWriter(tmp_path / "part", form)
    assert second.missing() == list(range(KEPT_EVERY, 2 * KEPT_EVERY))
    with pytest.raises(ValueError, match="missing"):
        second.finish(tmp_path / "whole")
    third = ShardWriter(tmp_path / "part", form)
    for row in third.missing():
        third.put(row, features[row])
    with monkeypatch.context() as patched, pytest.raises(UserError, match="No space left"):
        patched.setattr(os, "replace", full)
        third.finish(tmp_path / "whole")
    fourth = ShardWriter(tmp_path / "part", form)
    assert fourth.missing() == []  # it only lacked its name
    fourth.finish(tmp_path / "whole")
    assert not (tmp_path / "part").exists()
    assert form.is_sound(tmp_path / "whole")
    assert torch.equal(torch.from_numpy(form.maps(tmp_path / "whole")[0].copy()), features.half())
    content = (tmp_path / "whole").read_bytes()
    (tmp_path / "damaged").write_bytes(content[:-1] + b"x")
    assert len(ShardWriter(tmp_path / "damaged", form).missing()) == form.rows
    other = ShardWriter(tmp_path / "whole", ShardFormat(form.rows, DIM, "another"))
    assert len(other.missing()) == form.rows  # what belongs to another set is begun anew


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e5])
def test_what_fp16_cannot_hold_is_refused(tmp_path, number):
    writer = ShardWriter(tmp_path / "part", ShardFormat(1, 2, "owner"))
    with pytest.raises(UserError, match="fp16"):
        writer.put(0, torch.tensor([1.0, number]))


def full(*_):
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_met_before_anything_is_encoded(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match="No space left.*make room"):
        ShardWriter(tmp_path / "part", ShardFormat(10, 2, "owner"))


@pytest.mark.parametrize("harm", ["cut", "longer", "header", "empty", "other set", "swapped"])
def test_a_shard_that_is_not_what_it_must_be_is_named_with_its_mend(told, harm):
    write(told, 1, 2, 3, 4)
    path, content = told.path(3), bytearray(told.path(3).read_bytes())
    if harm == "header":
        content[20] ^= 1
    harmed = {"cut": content[:-1], "longer": content + b"x", "header": content, "empty": b""}
    path.write_bytes(harmed.get(harm, content))
    if harm == "other set":
        change(told, lambda content: content["classes"][0].__setitem__(0, "lynx"))
    if harm == "swapped":
        path.write_bytes(told.path(4).read_bytes())
    with pytest.raises(
        UserError, match=r"shard-0000\d-of-00004.safetensors is damaged.*python extract --shard \d IT KEY VALUE"
    ):
        FeatureSet(told.folder)


def test_damaged_content_is_found_by_who_reads_it(told):
    write(told, 1)
    assert told.form(1).is_sound(told.path(1))
    content = bytearray(told.path(1).read_bytes())
    content[PAGE + 5] ^= 1
    told.path(1).write_bytes(content)
    assert told.is_there(1)
    assert not told.form(1).is_sound(told.path(1))
    assert not told.form(2).is_sound(told.path(2))  # there is none


@pytest.mark.parametrize(
    "edit",
    [
        lambda told: told.pop("images"),
        lambda told: told.update(images=102),
        lambda told: told.update(images="101"),
        lambda told: told.update(classes=5),
        lambda told: told["classes"].append(["x", -1]),
        lambda told: told["settings"].update(dim=0),
        lambda told: told["settings"].update(shards=10**9),
        lambda told: told["settings"].update(format=2),
        lambda told: told["listing"]["offsets"].reverse(),
        lambda told: told["listing"].update(offsets=[0, None, 1, 2, 3]),
        lambda told: told["listing"]["offsets"].__setitem__(0, 1),
        lambda told: told["listing"]["offsets"].__setitem__(4, 2**70),
        lambda told: told["listing"]["parts"].pop(),
        lambda told: told.update(images=2**70, classes=[["cat", 2**70]]),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(told, edit):
    change(told, edit)
    with pytest.raises(UserError, match="set.json does not describe a feature set"):
        FeatureSet(told.folder)


@pytest.mark.parametrize("content", ["[]", '"text"', "3", "null"])
def test_so_is_one_that_is_none(told, content):
    (told.folder / "set.json").write_text(content)
    with pytest.raises(UserError, match="does not describe"):
        FeatureSet(told.folder)


def test_a_listing_that_was_changed_is_found(told, tmp_path):
    """Also where its length and its lines are as they were: two images that have changed places have wrong labels."""
    listing = told.folder / LISTING
    content = listing.read_bytes()
    listing.write_bytes(content.replace(b"photos/3.jpg\nphotos/4.jpg\n", b"photos/4.jpg\nphotos/3.jpg\n"))
    with pytest.raises(UserError, match="images.txt is not as it was written"):
        told.paths(1)
    assert told.paths(2) == paths()[25:50]
    listing.write_bytes(content + b"photos/101.jpg\n")
    with pytest.raises(UserError, match="images.txt is not as it was written"):
        told.paths(1)
    listing.write_bytes(content)
    change(told, lambda content: content["listing"]["offsets"].__setitem__(4, 2**50))  # to be read at once
    with pytest.raises(UserError, match="images.txt is not as it was written"):
        Description(told.folder).paths(4)
    with pytest.raises(UserError, match="line break"):
        describe(tmp_path / "other", {"dim": 1, "shards": 1}, [("", 1)], ["a\nb"], "")


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.jpg", "photos/../../x.jpg", ".."])
def test_no_image_lies_outside_the_data(tmp_path, monkeypatch, path):
    """Neither of a set that is begun, nor of one that somebody has made up."""
    with pytest.raises(UserError, match=re.escape(f"{path} is not below the data sets' folder")):
        describe(tmp_path, {"dim": 1, "shards": 1}, [("", 2)], ["a..b/..c.jpg", path], "")
    with monkeypatch.context() as patched:
        patched.setattr(feature_set, "leads_out", lambda _: False)
        describe(tmp_path, {"dim": 1, "shards": 1}, [("", 2)], ["a..b/..c.jpg", path], "")
    with pytest.raises(UserError, match=re.escape(f"names '{path}', which is not below")):
        Description(tmp_path).paths(1)


def test_a_hundred_million_features_are_opened_and_read_here_and_there(tmp_path):
    """205 GB of holes: opening reads the headers, few shots read what they ask for; neither fills the memory."""
    images = 100_000_000
    simulate(tmp_path / "set", images, shards=100, dim=1024, classes=2_000)
    size, taken = room(tmp_path / "set")
    if taken > 100_000_000:
        pytest.skip("the temporary folder's file system has no sparse files")
    assert size > 204.8e9
    before = resident()
    features = FeatureSet(tmp_path / "set")
    assert len(features) == images
    drawn = features.few_shot(1, seed=1)
    assert features.labels(drawn).tolist() == list(range(2_000))
    found = features.features(drawn)
    assert found.shape == (2_000, 1024)
    assert int(torch.count_nonzero(found)) == 0
    assert (drawn // 1_000_000).unique().tolist() == list(range(100))  # each shard takes part

    assert resident() - before < 200e6


def resident() -> float:
    """Bytes of memory that the process has, as far as the system tells."""
    if sys.platform == "linux":
        with open("/proc/self/status") as file:
            return 1024 * int(re.search(r"VmRSS:\s*(\d+)", file.read())[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_rounding_to_fp16_is_as_said():
    generator = np.random.default_rng(0)
    numbers = generator.normal(size=100_000) * 10.0 ** generator.integers(-3, 4, 100_000)
    rounded = numbers.astype(np.float16).astype(np.float64)
    normal = np.abs(numbers) > 6.2e-5
    assert (np.abs(rounded - numbers) / np.abs(numbers))[normal].max() <= 0.0005
    assert np.abs(rounded - numbers)[~normal].max() <= 3e-8
