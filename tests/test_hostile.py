"""Hostile files are refused by name, and no code in them runs."""

import os
import pickle
import re
import zipfile
from pathlib import Path

import pytest

from dassl.data.datasets import build_dataset
from dassl.utils import UnreadableImageError, UserError, read_image
from tests.common import needs_links
from tests.datasets.shapes import CLASSES, config, write_images, write_split_file
from tests.stress.attacks import ATTACKS, BASE, MARKER, READERS, Victim, payload, text
from tests.stress.hostile import CASES, refuse
from tools.prepare_dataset import main as prepare

NEED_LINKS = [name for name in CASES if name.startswith("link: ") or "a link to" in name]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[needs_links] if name in NEED_LINKS else []) for name in CASES]
)
def test_a_hostile_file_is_refused_by_name(name, tmp_path):
    refuse(tmp_path, name)


@pytest.mark.parametrize("attack", ATTACKS)
def test_pickle_runs_the_code_of_an_attack(attack, tmp_path):
    """Python's pickle module runs the attack, so refusing it is no accident."""
    try:
        pickle.loads(b"\x80\x04" + payload(attack, tmp_path) + b".")
    except Exception:  # some attacks raise after they have run
        pass
    finally:
        if "__setstate__" in vars(Victim):
            del Victim.__setstate__
    assert (tmp_path / MARKER).exists()


def test_files_without_an_attack_are_read(tmp_path):
    datum = f"c{BASE}\nDatum\n".encode() + b")\x81}("
    datum += text("_impath") + text("/old/a.jpg") + text("_label") + b"K\x00" + text("_classname") + text("a") + b"ub"
    split = READERS["few-shot split"](tmp_path, b"]" + datum + b"a")
    assert [item.impath for item in split["train"]] == [str(tmp_path / "a.jpg")]
    assert READERS["checkpoint"](tmp_path, b"}") == {"state_dict": {}}
    assert READERS["weights"](tmp_path, b"}") == {}


def build_image_paths(root: Path, name: str = "ImageFolder", **values: object) -> list[str]:
    """Build a data set and return the paths of its training images."""
    return [item.impath for item in build_dataset(config(root, name, **values)).train_x]


@needs_links
def test_links_inside_the_data_and_of_the_expected_folders_are_followed(tmp_path):
    write_split_file("dtd", tmp_path)
    (tmp_path / "dtd/images").rename(tmp_path / "elsewhere")
    (tmp_path / "dtd/images").symlink_to(tmp_path / "elsewhere")
    assert len(build_image_paths(tmp_path, "DescribableTextures")) == 18
    (tmp_path / "photos/train").mkdir(parents=True)
    (tmp_path / "photos/test").symlink_to("train")
    for name in CLASSES:
        (tmp_path / "photos/train" / name).symlink_to(f"../raw/{name}")
        write_images(tmp_path / "photos/raw", [f"{name}/0.jpg"])
        (tmp_path / f"photos/raw/{name}/1.jpg").symlink_to("0.jpg")
    assert len(build_image_paths(tmp_path, FOLDER="photos")) == 6
    assert len(build_image_paths(tmp_path / "dtd", FOLDER=str(tmp_path / "photos"))) == 6  # FOLDER may lie anywhere


@needs_links
def test_links_out_of_the_data_are_followed_with_follow_links(tmp_path):
    write_images(tmp_path, ["secret/s.jpg", "secret/t.jpg", *(f"data/photos/cat/{i}.jpg" for i in range(4))])
    (tmp_path / "data/photos/dog").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="FOLLOW_LINKS True"):
        build_image_paths(tmp_path / "data", FOLDER="photos")
    assert len(build_image_paths(tmp_path / "data", FOLDER="photos", FOLLOW_LINKS=True)) == 3


@needs_links
def test_an_image_that_is_a_broken_link_is_unreadable(tmp_path):
    write_images(tmp_path, (f"photos/{name}/{i}.jpg" for name in ("cat", "dog") for i in range(4)))
    for target in ("nowhere.jpg", "/nowhere/a.jpg", "0.jpg"):  # the last one links to itself
        path = tmp_path / "photos/cat/0.jpg"
        path.unlink()
        path.symlink_to(target)
        assert str(path) in build_image_paths(tmp_path, FOLDER="photos")
        with pytest.raises(UnreadableImageError, match=re.escape(str(path))):
            read_image(path)


def test_an_archive_that_torchvision_downloads_is_checked_too(tmp_path, monkeypatch, capsys):
    import torchvision

    def download_url(url, root, filename=None, *_, **__):
        os.makedirs(root, exist_ok=True)
        with zipfile.ZipFile(os.path.join(root, filename or os.path.basename(url)), "w") as archive:
            archive.writestr("../../evil.jpg", b"")

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", download_url)
    assert prepare(["eurosat", "--root", str(tmp_path / "data")]) == 2
    assert "has an entry that does not belong in an archive of images: ../../evil.jpg" in capsys.readouterr().err
    assert list((tmp_path / "data").iterdir()) == []
