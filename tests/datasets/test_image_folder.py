"""The data set ImageFolder: layouts, splits, class names, and refused folders and files."""

import pytest

from dassl.data.datasets import build_dataset
from dassl.utils import UserError
from tests.common import REPOSITORY, needs_links
from tests.datasets.shapes import config, write_images


def build(root, **values):
    """Build the data set in ``root`` with these ``values`` of DATASET."""
    return build_dataset(config(root, "ImageFolder", **values))


def list_paths(items):
    """Return the paths of images."""
    return [item.impath for item in items]


@pytest.mark.parametrize(
    ("splits", "counts"),
    [
        (("train", "test"), (24, 0, 18)),
        (("train", "val"), (24, 0, 15)),
        (("train", "test", "val"), (24, 15, 18)),
        (("",), (12, 0, 12)),
    ],
)
def test_each_layout_gives_its_training_validation_and_test_images(tmp_path, splits, counts):
    for split in splits:
        images = range({"test": 6, "val": 5}.get(split, 8))
        for name in ("zero", "one", "two"):
            write_images(tmp_path / "photos" / split / name, (f"{i}.jpg" for i in images))
    dataset = build(tmp_path, FOLDER="photos")
    assert dataset.classnames == ["one", "two", "zero"]
    assert tuple(len(split) for split in (dataset.train_x, dataset.val, dataset.test)) == counts
    dataset = build(tmp_path, FOLDER="photos", NUM_SHOTS=2)
    test = counts[-1]
    assert [len(split) for split in (dataset.train_x, dataset.val, dataset.test)] == [6, 6, test]
    images = {path for split in (dataset.train_x, dataset.val, dataset.test) for path in list_paths(split)}
    assert len(images) == 12 + test
    if len(splits) == 3:  # the folders have the names of the splits
        assert {path.split("/")[-3] for path in list_paths(dataset.val)} == {"val"}
        assert {path.split("/")[-3] for path in list_paths(dataset.test)} == {"test"}


def test_the_example_config_trains_on_a_root_of_class_folders(tmp_path, run):
    write_images(tmp_path / "photos", (f"{name}/{i}.jpg" for name in ("cat", "dog") for i in range(8)))
    result = run(
        *("--root", tmp_path / "photos", "--dataset-config-file", REPOSITORY / "configs/datasets/image_folder.yaml"),
        *("DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 1, "TEST.FINAL_MODEL", "best_val"),
    )
    assert result.code == 0, result.error
    assert "* total: 8" in result.log


def test_the_test_images_are_drawn_by_class_folder_and_file_name_alone(tmp_path):
    write_images(tmp_path / "here/pets", (f"{name}/{i}.jpg" for name in ("cat", "dog") for i in range(10)))
    write_images(tmp_path / "moved", (f"{name}/{i}.jpg" for name in ("dog", "cat") for i in reversed(range(10))))
    dataset, moved = build(tmp_path / "here/pets"), build(tmp_path, FOLDER="moved")
    cfg = config(tmp_path, "ImageFolder", FOLDER="moved")
    cfg.SEED = 7
    tests = [[path.split("/")[-2:] for path in list_paths(d.test)] for d in (dataset, moved, build_dataset(cfg))]
    assert tests[0] == tests[1] == tests[2]
    assert [item.label for item in dataset.test] == [0] * 5 + [1] * 5
    assert not set(list_paths(dataset.train_x)) & set(list_paths(dataset.test))
    assert len(dataset.train_x) == 10
    cats, dogs = ([name for folder, name in tests[0] if folder == pet] for pet in ("cat", "dog"))
    assert cats != dogs
    for percent, count in ((0.3, 3), (0.01, 1), (0.99, 9)):
        dataset = build(tmp_path, FOLDER="moved", TEST_PERCENT=percent)
        assert [sum(item.label == label for item in dataset.test) for label in (0, 1)] == [count, count]
    with pytest.raises(UserError, match="DATASET.TEST_PERCENT is 30.0; it must be between 0 and 1"):
        build(tmp_path, FOLDER="moved", TEST_PERCENT=30.0)


def test_class_names_come_from_the_folders_or_from_the_classnames_file(tmp_path):
    write_images(tmp_path, (f"{name}/{i}.jpg" for name in ("jack-o_lantern", "a b", "n1") for i in range(2)))
    assert build(tmp_path).classnames == ["a b", "jack-o lantern", "n1"]
    (tmp_path / "names.txt").write_text("n1 great white shark\na b\tletters\njack-o_lantern pumpkin\nn2 more\n")
    for file in ("names.txt", str(tmp_path / "names.txt")):
        assert build(tmp_path, CLASSNAMES=file).classnames == ["letters", "pumpkin", "great white shark"]
    (tmp_path / "names.txt").write_text("n1 great white shark\n")
    with pytest.raises(UserError, match="names.txt has no name for the folders a b, jack-o_lantern"):
        build(tmp_path, CLASSNAMES="names.txt")
    with pytest.raises(UserError, match=r"no .*absent.txt: .*DATASET.CLASSNAMES"):
        build(tmp_path, CLASSNAMES="absent.txt")


def test_a_missing_folder_or_split_or_class_is_refused(tmp_path):
    with pytest.raises(UserError, match="no folder .*photos. DATASET.FOLDER, below DATASET.ROOT"):
        build(tmp_path, FOLDER="photos")
    write_images(tmp_path, [f"train/cat/{i}.jpg" for i in range(2)])
    with pytest.raises(UserError, match="has train/, but neither test/ nor val/. DATASET.FOLDER .*train splits"):
        build(tmp_path)
    assert build("elsewhere", FOLDER=str(tmp_path / "train")).classnames == ["cat"]
    write_images(tmp_path, ["test/dog/0.jpg"])
    with pytest.raises(UserError, match="train lacks class folders that test has: dog"):
        build(tmp_path)


def test_a_class_without_test_images_is_allowed_and_named(tmp_path, capsys):
    write_images(tmp_path, ["cat/0.jpg", "cat/1.png", "dog/0.jpg"])
    dataset = build(tmp_path)
    assert (dataset.classnames, len(dataset.train_x), len(dataset.test)) == (["cat", "dog"], 2, 1)
    note = "Note: no test images for the class dog: they are not in the accuracy"
    assert note in capsys.readouterr().out
    names = [*(f"train/{name}/{i}.jpg" for name in ("cat", "dog") for i in range(3)), "test/cat/0.jpg"]
    write_images(tmp_path / "split", [*names, "val/dog/0.jpg"])
    dataset = build(tmp_path, FOLDER="split")
    assert dataset.classnames == ["cat", "dog"]
    assert [item.label for item in (*dataset.test, *dataset.val)] == [0, 1]
    assert note in capsys.readouterr().out


def test_a_file_that_is_no_image_and_a_nested_folder_are_refused(tmp_path):
    write_images(tmp_path, ["cat/0.jpg", "cat/1.png", "dog/0.jpg"])
    write_images(tmp_path, ["dog/1.jpg", "train/0.jpg", "train/1.jpg"])
    (tmp_path / "dog/.DS_Store").write_text("")
    assert build(tmp_path).classnames == ["cat", "dog", "train"]
    (tmp_path / "dog/notes.txt").write_text("")
    with pytest.raises(UserError, match=r"dog/notes.txt is not an image \(.jpg, .*\), but a .txt file; move it out"):
        build(tmp_path)
    write_images(tmp_path, ["cat/kittens/0.jpg"])
    with pytest.raises(UserError, match="cat/kittens is a folder; images lie in the class folder itself"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("images", "refusal"),
    [
        ("photos/{}/0.jpg", "photos/cat is a folder; .* If photos is no class, DATASET.FOLDER .*is one level too high"),
        ("photos/images/{}/0.jpg", "If photos is no class, DATASET.FOLDER .*is one level too high"),
        ("photos/train/{}/0.jpg", "If photos is no class, DATASET.FOLDER .*is one level too high"),
        ("train/{}/0.jpg", "has train/, but neither test/ nor val/"),
        ("train/images/{}/0.jpg", "has train/, but neither test/ nor val/"),
        ("photos/{}.jpg", ""),
    ],
)
def test_a_root_at_the_wrong_level_is_refused_or_a_note_says_that_there_is_one_class(tmp_path, images, refusal, capsys):
    write_images(tmp_path, map(images.format, ("cat", "dog")))
    if refusal:
        with pytest.raises(UserError, match=refusal):
            build(tmp_path)
    else:
        assert build(tmp_path).classnames == ["photos"]
        note = 'Note: the data set has one class, "photos", so every accuracy is 100%: is DATASET.FOLDER'
        assert note in capsys.readouterr().out


def write_table(root, *lines: str) -> None:
    """Write photos.csv with a byte order mark, as Excel does."""
    (root / "photos.csv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8-sig")


@pytest.mark.parametrize("splits", [("",), ("train", "val"), ("train", "test", "val")])
def test_a_table_of_the_images_gives_the_data_set_of_their_folders(tmp_path, splits):
    names = [f"{split}/{name}/{i}.jpg".lstrip("/") for split in splits for name in ("dog", "b cat") for i in range(8)]
    write_images(tmp_path, names)
    columns = [{"split": name.split("/")[0], "image": name, "class": name.split("/")[-2]} for name in names]
    header = ["image", "class"] if len(splits) == 1 else ["split", "image", "note", "class"]
    write_table(tmp_path, ",".join(header), *(",".join(row.get(c, "") for c in header) for row in columns[::-1]))
    for values in ({}, {"NUM_SHOTS": 2}):
        expected, dataset = build(tmp_path, **values), build(tmp_path, CSV="photos.csv", **values)
        assert dataset.classnames == ["b cat", "dog"]
        for split in ("train_x", "val", "test"):
            assert [*map(repr, getattr(dataset, split))] == [*map(repr, getattr(expected, split))]


def test_a_table_may_list_images_anywhere_and_take_class_names_from_a_file(tmp_path):
    write_images(tmp_path, ["a/0.jpg", "a/1.jpg", "2.jpg"])
    write_table(tmp_path, "image\tclass\tsplit", "a\\0.jpg\tn2\ttrain", "./2.jpg\tn1\ttrain", "a/1.jpg\tn1\ttest")
    (tmp_path / "names.txt").write_text("n2 great dane\nn1 puffin\n")
    dataset = build(tmp_path, CSV="photos.csv", CLASSNAMES="names.txt")
    assert dataset.classnames == ["puffin", "great dane"]  # in the order of n1, n2
    assert list_paths(dataset.train_x) == [str(tmp_path / "2.jpg"), str(tmp_path / "a/0.jpg")]
    assert list_paths(dataset.test) == [str(tmp_path / "a/1.jpg")]


@pytest.mark.parametrize("column", ["Class", "label", "class_name", "category"])
def test_the_column_of_classes_has_one_of_several_names_or_the_first_of_them(tmp_path, capsys, column):
    write_images(tmp_path, ["0.jpg", "1.jpg", "2.jpg"])
    write_table(tmp_path, f"image,{column},split", "0.jpg,a,train", "1.jpg,b,train", "2.jpg,b,test")
    assert build(tmp_path, CSV="photos.csv").classnames == ["a", "b"]
    assert "comes from the column" not in capsys.readouterr().out
    write_table(tmp_path, f"image,class name,{column},split", "0.jpg,x,a,train", "1.jpg,y,b,train", "2.jpg,y,b,test")
    if column in ("Class", "label"):
        assert build(tmp_path, CSV="photos.csv").classnames == ["a", "b"]
        assert f'each class comes from the column "{column}", not "class name"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["image:class", "a.jpg:cat"], "line 1: the column image is missing; the columns are image:class"),
        (
            ["image,kind", "a.jpg,cat"],
            "line 1: the column class is missing; the columns are image, kind. The first of class, label, classname",
        ),
        (["image,class", "a.jpg"], "line 2: columns in the row: 1, in the header: 2"),
        (["image,class", "a.jpg,"], "line 2: the column class is empty"),
        (["image,class,split", "a.jpg,cat,train", "b.jpg,cat,"], "line 3: the column split is empty"),
        (["image,class,split", "a.jpg,cat,holdout"], 'line 2: the split "holdout" is none of train, restval, val, '),
        (["image,class", "c.jpg,cat"], "line 2: there is no image .*c.jpg"),
        (["image,class", "../a.jpg,cat"], "line 2: the image ../a.jpg is not in the folder"),
        (["image,class", "/etc/passwd,cat"], "line 2: the image /etc/passwd is not in the folder"),
        (["image,class", "a.jpg,cat", "./a.jpg,dog"], "line 3: a.jpg is in line 2, too"),
        (["image,class", "a.jpg,cat,dog"], "line 2: it has more columns than the header"),
        (["image,class,split", "a.jpg,cat,train", "b.jpg,dog,test"], 'line 3: its class "dog" has no training image'),
        (["image,class,split", "a.jpg,cat,train", "b.jpg,dog,train"], "no image is for testing"),
        (["image,class,split", "a.jpg,cat,test"], "no image is for training"),
        pytest.param(["image,class", "out.jpg,cat"], "out.jpg leads by a link to .*FOLLOW_LINKS", marks=needs_links),
    ],
)
def test_a_wrong_table_is_refused_by_its_line(tmp_path, lines, message):
    root = tmp_path / "photos"
    write_images(root, ["a.jpg", "b.jpg", "../secret.jpg"])
    if "out.jpg,cat" in lines:
        (root / "out.jpg").symlink_to("../secret.jpg")
    write_table(root, *lines)
    with pytest.raises(UserError, match=f"photos.csv.*{message}" if "link" not in message else message):
        build(root, CSV="photos.csv")
    with pytest.raises(UserError, match=r"there is no file .*none.csv; DATASET.CSV"):
        build(root, CSV="none.csv")


def test_system_files_and_folders_are_passed_over(tmp_path):
    write_images(tmp_path, ["cat/0.jpg", "cat/1.jpg", "dog/0.jpg", "dog/1.jpg"])
    names = [*build(tmp_path).classnames]
    for name in (
        "cat/Thumbs.db",
        "cat/desktop.ini",
        "dog/.DS_Store",
        "dog/._0.jpg",
        "Desktop.ini",
        "__MACOSX/cat/._0.jpg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    dataset = build(tmp_path)
    assert dataset.classnames == names == ["cat", "dog"]
    assert len(dataset.train_x) + len(dataset.test) == 4


def test_all_images_that_pillow_opens_are_images_of_a_class(tmp_path):
    names = [
        f"{name}/{i}" for name in ("cat", "dog") for i in ("0.jfif", "1.jp2", "2.avif", "3.tga", "4.HEIC", "5.mpo")
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")  # a list reads no file
    dataset = build(tmp_path)
    assert len(dataset.train_x) + len(dataset.test) == len(names)


def test_an_image_whose_name_has_another_extension_is_to_be_renamed_not_removed(tmp_path):
    write_images(tmp_path, ["cat/0.jpg", "dog/0.jpg", "dog/1.png"])
    (tmp_path / "dog/1.png").rename(tmp_path / "dog/1.dat")
    with pytest.raises(
        UserError, match=r"dog/1.dat is an image by its content, but not by its name: .* end in .png"
    ) as error:
        build(tmp_path)
    assert "remove" not in str(error.value)
    assert "move it" not in str(error.value)
