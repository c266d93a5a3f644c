"""predict.py on files as people have them: photos of phones, scans of 16 bits, other formats and other files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.common import REPOSITORY
from tests.inference import models

CLASSES = ("--classes", "cup", "cat", "--backbone", "tiny")
EXIF = Image.Exif()
EXIF[0x0112] = 6
NOTE = "images of more than 8 bits a channel"


def write_photo(path: Path) -> str:
    """Write a JPEG that EXIF turns, and its pixels as ``upright.png`` and ``stored.png`` beside it; return its path."""
    models.write_image(path, 1, (90, 50))
    with Image.open(path) as image:
        image.save(path, "JPEG", exif=EXIF)
    with Image.open(path) as image:
        image.save(path.with_name("stored.png"), exif=None)
        image.transpose(Image.Transpose.ROTATE_270).save(path.with_name("upright.png"), exif=None)
    return str(path)


def write_scan(path: Path, white: int = 4095) -> str:
    """Write a scan of values up to ``white`` in 16 bits, and ``grey.png`` of 8 bits with the same greys."""
    grey = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    grey[0, 0] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(grey * (white / 255)).astype(np.uint16)).save(path)
    Image.fromarray(grey).save(path.with_name("grey.png"))
    return str(path)


def test_photos_are_turned_upright_unless_an_option_says_otherwise(call, tmp_path):
    photo = write_photo(tmp_path / "phone.jpg")
    upright, stored = (
        call(tmp_path / name, *CLASSES, "--json").probabilities() for name in ("upright.png", "stored.png")
    )
    assert upright != stored
    assert call(photo, *CLASSES, "--json").probabilities() == upright
    assert call(photo, *CLASSES, "--json", "--orientation", "stored").probabilities() == stored


def test_scans_are_scaled_and_a_note_says_what_helps(call, tmp_path):
    scan = write_scan(tmp_path / "scan.png")
    grey = call(tmp_path / "grey.png", *CLASSES, "--json").probabilities()
    dark = call(scan, *CLASSES, "--json")
    assert dark.probabilities() != grey
    assert dark.error.count(NOTE) == 1
    assert "set --white-level 4095" in dark.error
    scaled = call(scan, *CLASSES, "--json", "--white-level", 4095)
    assert scaled.probabilities() == grey
    assert "dark" not in scaled.error
    assert call(tmp_path / "grey.png", *CLASSES).error == ""
    full = write_scan(tmp_path / "full.png", 65535)
    assert call(full, *CLASSES, "--json").probabilities() == grey


def test_a_negative_white_level_is_refused(refused, tmp_path):
    image = models.write_image(tmp_path / "a.png", 0)
    refused(image, *CLASSES, "--white-level", -1, fragments=["--white-level is -1"])


@pytest.fixture
def train_on_photos(run, tmp_path):
    """A function that trains on a folder of small images, with further settings, and returns the run's folder."""

    def train(*settings, out):
        for name in ("cat", "dog"):
            for i in range(4):
                models.write_image(tmp_path / "photos" / name / f"{i}.png", i)
        flags = (
            "--root",
            tmp_path / "photos",
            "--dataset-config-file",
            REPOSITORY / "configs/datasets/image_folder.yaml",
        )
        result = run(*flags, "OPTIM.MAX_EPOCH", 1, *settings, out=out)
        assert result.code == 0, result.error
        return result.folder

    return train


def test_a_run_decodes_as_it_was_trained(call, train_on_photos, tmp_path):
    photo = write_photo(tmp_path / "phone.jpg")
    for settings, name in (((), "upright.png"), (("INPUT.ORIENTATION", "stored"), "stored.png")):
        folder = train_on_photos(*settings, out=f"run {name}")
        expected = call(tmp_path / name, "--model-dir", folder, "--json").probabilities()
        assert call(photo, "--model-dir", folder, "--json").probabilities() == expected
        for flags in (("--orientation", "exif"), ("--white-level", 0)):
            result = call(photo, "--model-dir", folder, *flags)
            assert result.code == 2
            assert f"{flags[0]} does not go with --model-dir: the run's config sets it" in result.error
    config = folder / "config.yaml"
    lines = [
        line
        for line in config.read_text(encoding="utf-8").splitlines()
        if "ORIENTATION" not in line and "WHITE_LEVEL" not in line
    ]
    config.write_text("\n".join(lines), encoding="utf-8")  # a run of an earlier version
    assert call(photo, "--model-dir", folder, "--json").probabilities() == expected
    scan = write_scan(tmp_path / "scan.png")
    assert "255 becomes white, and so does all above it (INPUT.WHITE_LEVEL)" in call(scan, "--model-dir", folder).error
    checkpoint = shutil.copy(folder / "prompt_learner/model.pth.tar-1", tmp_path / "alone.pth.tar-1")
    flags = ("--model-dir", checkpoint, "--backbone", "tiny", "--classes", "cat", "dog", "--json")
    shares = [call(photo, *flags, *more).probabilities() for more in ((), ("--orientation", "stored"))]
    assert shares[1] == expected
    assert shares[0] != shares[1]


def test_other_commands_turn_and_scale_as_classify(tmp_path, call):
    pytest.importorskip("transformers", reason="needs the optional package transformers")
    model, photo, scan = (
        models.clipseg(tmp_path / "model"),
        write_photo(tmp_path / "a.jpg"),
        write_scan(tmp_path / "b.png"),
    )
    base = ("--text", "cat", "dog", "--model", model, "--json", "--out", tmp_path / "out")

    def segment(*arguments):
        result = call("segment", *arguments, *base)
        assert result.code == 0, result.error
        return [entry["highest"] for entry in result.records[0]["segments"]]

    assert segment(photo) == segment(tmp_path / "upright.png") != segment(photo, "--orientation", "stored")
    assert segment(scan, "--white-level", 4095) == segment(tmp_path / "grey.png")
    assert call("segment", scan, *base).error.count(NOTE) == 1


def test_frames_of_a_video_are_turned_and_scaled(tmp_path, call):
    pytest.importorskip("transformers", reason="needs the optional package transformers")
    model = models.xclip(tmp_path / "model")
    for name in ("phone.jpg", "scan.png"):
        (write_photo if name == "phone.jpg" else write_scan)(tmp_path / "all" / name)
    for name in ("phone.jpg", "upright.png", "scan.png", "grey.png"):
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "all" / name, tmp_path / name / name)

    def classify(name, *flags):
        return call(tmp_path / name, "--video", "--classes", "cat", "dog", "--model", model, "--json", *flags)

    assert classify("phone.jpg").probabilities() == classify("upright.png").probabilities()
    assert classify("phone.jpg", "--orientation", "stored").probabilities() != classify("upright.png").probabilities()
    assert classify("scan.png", "--white-level", 4095).probabilities() == classify("grey.png").probabilities()
    assert classify("scan.png").error.count(NOTE) == 1


# ---- which files are images ----


def test_a_folder_gives_all_images_that_pillow_opens_and_a_note_counts_the_others(call, tmp_path):
    suffixes = {
        "jpg": "JPEG",
        "webp": "WEBP",
        "jfif": "JPEG",
        "avif": "AVIF",
        "mpo": "JPEG",
        "jp2": "JPEG2000",
        "tga": "TGA",
    }
    for number, (suffix, name) in enumerate(suffixes.items()):
        rng = np.random.default_rng(number)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / f"{number}.{suffix}", name)
    for name in ("a.txt", "b.TXT", "c.docx", "README", "Thumbs.db", "desktop.ini", ".DS_Store", "._0.jpg"):
        (tmp_path / name).write_text("text")
    result = call(tmp_path, *CLASSES, "--json")
    assert result.code == 0, result.error
    assert [Path(record["image"]).suffix[1:] for record in result.records] == list(suffixes)
    assert result.error.splitlines() == [f"Note: passed over in {tmp_path}: 2 .txt, 1 .docx, 1 without extension"]


def test_files_of_the_system_are_passed_over_wherever_they_are_named(call, tmp_path, monkeypatch):
    image = models.write_image(tmp_path / "a.png", 0)
    system = [tmp_path / name for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "__MACOSX")]
    for path in system[:-1]:
        path.write_text("text")
    models.write_image(system[-1] / "a.png", 0)
    for arguments in ((image, *system), (tmp_path / "*",)):
        result = call(*arguments, *CLASSES, "--json")
        assert (result.code, result.error) == (0, "")
        assert [record["image"] for record in result.records] == [image]
    result = call(tmp_path / "Thumbs.db", *CLASSES)
    assert result.code == 2
    assert "Thumbs.db as an image" in result.error
    result = call("a.flv", tmp_path / "Thumbs.db", "--classes", "cup", "cat")
    assert "video not found: a.flv" in result.error


def test_hidden_folders_and_those_of_the_system_are_passed_over(call, tmp_path):
    folder = tmp_path / ".data"  # of the path below the folder that was named, each part counts
    for name in ("a.png", "sub/b.png", ".hidden/c.png", "__MACOSX/sub/d.png", "sub/.e/f/g.txt"):
        models.write_image(folder / name, 0) if name.endswith("png") else (folder / name).parent.mkdir(parents=True)
    (folder / "sub/.e/f/g.txt").write_text("text")
    result = call(folder, *CLASSES, "--json")
    assert (result.code, result.error) == (0, "")
    assert [record["image"] for record in result.records] == [str(folder / "a.png"), str(folder / "sub/b.png")]


def test_in_a_folder_contents_decide_on_files_without_the_extension_of_an_image(call, tmp_path):
    for name, kind in (("photo", "JPEG"), ("scan.dat", "PNG"), ("drawing.bin", "EPS")):
        Image.new("RGB", (40, 40), (200, 10, 10)).save(tmp_path / name, kind)
    for name in ("README", "b.dat"):
        (tmp_path / name).write_text("text")
    result = call(tmp_path, *CLASSES, "--json")
    assert result.code == 0, result.error
    assert [Path(record["image"]).name for record in result.records] == ["photo", "scan.dat"]
    assert result.error == f"Note: passed over in {tmp_path}: 1 .bin, 1 .dat, 1 without extension\n"


def test_fits_is_an_image_alone_and_in_a_folder(call, tmp_path):
    cards = ("SIMPLE  =                    T", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 50", "NAXIS2  = 48", "END")
    header = "".join(f"{card:80}" for card in cards).encode()
    (tmp_path / "x.fits").write_bytes(header.ljust(2880) + bytes(range(240)) * 10 + b"\0" * 480)
    alone, folder = (call(path, *CLASSES, "--json") for path in (tmp_path / "x.fits", tmp_path))
    assert (alone.code, folder.code) == (0, 0), alone.error + folder.error
    assert alone.records == folder.records


def test_a_folder_of_other_files_alone_is_refused_with_their_kinds(call, tmp_path):
    for name in ("a.pdf", "b.txt", "Thumbs.db"):
        (tmp_path / name).write_text("")
    result = call(tmp_path, *CLASSES)
    assert result.code == 2
    assert f"no image in the folder {tmp_path}: it has 1 .pdf, 1 .txt; images end in .jpg" in result.error


def test_heic_without_its_package_is_named_and_the_other_images_are_classified(call, tmp_path, monkeypatch):
    monkeypatch.setattr("dassl.utils.images.find_spec", lambda name: None)
    models.write_image(tmp_path / "a.png", 0)
    (tmp_path / "b.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    result = call(tmp_path, *CLASSES, "--json")
    assert result.code == 2
    assert [record["image"] for record in result.records] == [str(tmp_path / "a.png")]
    assert "b.heic as an image: it is a HEIC image, which needs a package: pip install pillow-heif" in result.error


# ---- what was probably meant ----


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (["cup,cat,dog"], "--classes cup cat dog"),
        (["cup,red envelope"], '--classes cup "red envelope"'),
        (["杯子，猫"], "--classes 杯子 猫"),  # noqa: RUF001  a Chinese comma
        (["杯子、猫"], "--classes 杯子 猫"),
        (["cup,", "cat,", "dog"], "--classes cup cat dog"),
        (["cup;cat;dog"], "--classes cup cat dog"),
        (["cup;", "red envelope"], '--classes cup "red envelope"'),
        (["杯子；猫"], "--classes 杯子 猫"),  # noqa: RUF001  a Chinese semicolon
    ],
)
def test_classes_with_commas_between_them_are_refused(refused, tmp_path, names, advice):
    refused(models.write_image(tmp_path / "a.png", 0), "--classes", *names, "--backbone", "tiny", fragments=[advice])


def test_a_comma_within_one_of_several_names_is_accepted(call, tmp_path):
    image = models.write_image(tmp_path / "a.png", 0)
    result = call(image, "--classes", "crane, a bird", "crane, a machine", "--backbone", "tiny", "--json")
    assert result.code == 0, result.error


@pytest.mark.parametrize(
    ("argument", "advice"),
    [
        ("https://example.org/a.jpg", "https://example.org/a.jpg is an address, not a file: download it first"),
        ("www.example.org/a.jpg", "www.example.org/a.jpg is an address, not a file: download it first"),
        ("{folder}/photos.zip", "photos.zip is an archive: unpack it, then name the folder"),
        ("{folder}/photos.tar.gz", "photos.tar.gz is an archive: unpack it, then name the folder"),
    ],
)
def test_addresses_and_archives_are_refused_with_advice(refused, tmp_path, argument, advice):
    for name in ("photos.zip", "photos.tar.gz"):
        (tmp_path / name).write_bytes(b"")
    refused(argument.format(folder=tmp_path), *CLASSES, fragments=[advice])


def test_a_video_with_an_option_for_images_is_called_a_video(refused):
    message = "v.flv is a video, which X-CLIP classifies: --backbone does not go with it"
    refused("v.flv", *CLASSES, fragments=[message])


@pytest.mark.parametrize(("suffix", "codec"), [("flv", "flv1"), ("3gp", "mpeg4"), ("ts", "mpeg2video")])
def test_videos_of_more_kinds_are_known_by_their_extension(call, tmp_path, suffix, codec):
    pytest.importorskip("transformers", reason="needs the optional package transformers")
    av = pytest.importorskip("av", reason="needs the optional package av")
    with av.open(str(tmp_path / f"video.{suffix}"), "w", format="mpegts" if suffix == "ts" else None) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for shade in range(0, 200, 20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), shade, np.uint8))))
        container.mux(stream.encode())
    model = models.xclip(tmp_path / "model")
    result = call(tmp_path / f"video.{suffix}", "--classes", "cat", "dog", "--model", model, "--json")
    assert result.code == 0, result.error
    assert len(result.probabilities()) == 2
