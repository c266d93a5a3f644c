"""A user error ends in one message that names the cause and the remedy, and in exit code 2; no result is lost."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import subprocess
import sys
from inspect import getfile
from pathlib import Path

import pytest

import datasets
import predict
import train
import trainers
from dassl import __version__
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from tests.common import REPOSITORY, WNIDS

SHORT = ("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1)


def assert_refused(result, *texts: object) -> None:
    """Assert that a run ended with one error message that has all the texts."""
    assert result.code == 2
    assert result.error.count("error: ") == 1
    assert "Traceback" not in result.error
    for text in texts:
        assert str(text) in result.error


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["TRAINER.NAME", "CoOpp"], ['unknown trainer "CoOpp"', 'did you mean "CoOp"?']),
        (["MODEL.BACKBONE.NAME", "RN5O"], ['"RN5O"', 'did you mean "RN50"?', "ViT-L/14@336px", "tiny"]),
        (["TRAINER.COOP.NCTX", "4"], ['unknown config key "TRAINER.COOP.NCTX"', 'did you mean "TRAINER.COOP.N_CTX"?']),
        (["INPUT.SIZE", "(32,)"], ["INPUT.SIZE is (32,)"]),
        (["INPUT.GB_K", "2"], ["INPUT keys do not suit"]),
        (["TRAINER.COOP.CTX_INIT", "_"], ["CTX_INIT", "no words"]),
        (["TRAINER.COOP.CTX_INIT", "a photo of a {}"], ["CTX_INIT", "has braces", "leave out {}"]),
        (["TRAINER.NAME", "CoCoOp", "TRAINER.COCOOP.CTX_INIT", "a {} photo"], ["TRAINER.COCOOP.CTX_INIT", "braces"]),
        (["TRAINER.NAME", "ZeroshotCLIP", "DATASET.TEMPLATE", "['a {}.', 'a']"], ['DATASET.TEMPLATE "a" has no {}']),
        (["TRAINER.NAME", "TipAdapter", "DATASET.TEMPLATE", "[]"], ["DATASET.TEMPLATE is an empty list"]),
        (["DATASET.TEMPLATE", "['a {}.', 3]"], ["DATASET.TEMPLATE", "a text or a list of texts"]),
        (["TRAINER.NAME", "CLIPAdapter", "DATASET.DESCRIPTIONS", "no.json"], ["no file no.json", "DESCRIPTIONS"]),
        (["TRAINER.NAME", "ZeroshotCLIP2", "DATASET.DESCRIPTIONS", "a.json"], ["DESCRIPTIONS goes with ZeroshotCLIP"]),
        (["OPTIM.LR", "fast"], ["OPTIM.LR", "a number", "'fast'"]),
        (["DATASET.NUM_SHOTS", "2.5"], ["DATASET.NUM_SHOTS", "a whole number"]),
        (["OPTIM.LR"], ["KEY VALUE", '"OPTIM.LR"']),
        (["OPTIM.NAME", "sdg"], ["OPTIM.NAME", 'did you mean "sgd"?']),
        (["OPTIM.MAX_EPOCH", "0"], ["OPTIM.MAX_EPOCH is 0"]),
        (["TRAINER.COOP.PREC", "fp8"], ["TRAINER.COOP.PREC", "fp16"]),
        (["TRAINER.COOP.CLASS_TOKEN_POSITION", "back"], ["end, front, middle"]),
        (["TRAINER.COOP.N_CTX", "0"], ["TRAINER.COOP.N_CTX is 0"]),
        (["TRAINER.COOP.N_CTX", "80"], ["has 84 tokens", "77 tokens", "zero."]),
        (["DATASET", "4"], ["DATASET in the command line is a group of keys", "NUM_SHOTS"]),
        (["TRAINER.NAME", ""], ["no trainer is given", "CoOp"]),
        (["SEED", "9" * 20], ["seed 99999999999999999999 is too large"]),
        (["OPTIM.LR", "-1"], ["OPTIM keys do not suit sgd", "learning rate"]),
        (["OPTIM.STEPSIZE", "()"], ["OPTIM.STEPSIZE is ()"]),
        (["TRAIN.PRINT_FREQ", "0"], ["TRAIN.PRINT_FREQ is 0"]),
        (["TEST.SPLIT", "tset"], ['no split "tset"', "val, test"]),
        (["TEST.FINAL_MODEL", "best"], ["TEST.FINAL_MODEL", "best_val"]),
        (["DATALOADER.NUM_WORKERS", "-1"], ["DATALOADER.NUM_WORKERS is -1"]),
        (["DATALOADER.K_TRANSFORMS", "0"], ["DATALOADER.K_TRANSFORMS is 0"]),
        (["DATALOADER.K_TRANSFORMS", "2"], ["CoOp trains on one view"]),
        (["INPUT.PIXEL_STD", "[0, 0, 0]"], ["INPUT.PIXEL_MEAN", "[0, 0, 0]"]),
        (["INPUT.NO_TRANSFORM", "True"], ["INPUT.NO_TRANSFORM"]),
        (["MODEL.BACKBONE.WEIGHTS", f"{REPOSITORY}/README.md"], ["README.md cannot be read", "no file of torch.save"]),
        (["INPUT.SIZE", "(64, 64)"], ["INPUT.SIZE is (64, 64)", "(32, 32)"]),
        (["INPUT.TRANSFORMS", '["random_flop"]'], ['did you mean "random_flip"?']),
        (["DATALOADER.TRAIN_X.SAMPLER", "RandomSample"], ['did you mean "RandomSampler"?']),
        (["DATALOADER.TRAIN_X.BATCH_SIZE", "0"], ["batch size is 0"]),
        (["DATASET.SUBSAMPLE_CLASSES", "old"], ["base"]),
        (["DATASET.NUM_SHOTS", "0", "TEST.FINAL_MODEL", "best_val"], ['no split "val"']),
        (["MODEL.BACKBONE.WEIGHTS", "absent.pt"], ["no weights file absent.pt"]),
        (["MODEL.INIT_WEIGHTS", "absent.pt"], ["no checkpoint at absent.pt"]),
        (["RESUME", "absent"], ["no checkpoint to resume from in absent"]),
    ],
)
def test_an_invalid_value_is_refused(run, arguments, texts):
    assert_refused(run(*SHORT, *arguments), *texts)


def test_a_missing_or_invalid_config_file_is_refused(run, tmp_path):
    assert_refused(run("--config-file", REPOSITORY / "configs/trainers/CoOp/rn51.yaml"), 'did you mean "rn50.yaml"?')
    bad = tmp_path / "bad.yaml"
    bad.write_text("OPTIM:\n  LRR: 1\n", encoding="utf-8")
    assert_refused(run("--config-file", bad), "OPTIM.LRR", bad, 'did you mean "OPTIM.LR"?')
    bad.write_text("OPTIM: [", encoding="utf-8")
    assert_refused(run("--config-file", bad), bad, "YAML")


def test_eval_only_without_a_checkpoint_is_refused(run, tmp_path):
    assert_refused(run("--eval-only", *SHORT), "needs --model-dir")
    assert_refused(
        run("--eval-only", "--model-dir", tmp_path / "absent", *SHORT), "no model directory", tmp_path / "absent"
    )
    assert_refused(run("--eval-only", "--model-dir", tmp_path, *SHORT), "no checkpoint in", "there is none")


def test_a_checkpoint_that_is_absent_damaged_or_of_another_model_is_refused(run):
    trained = run(*SHORT, "TRAIN.CHECKPOINT_FREQ", 1)
    flags = ("--eval-only", "--model-dir", trained.folder)
    assert_refused(run(*flags, "--load-epoch", 7, *SHORT, out="other"), "epoch 7", "epochs there: 1")
    model = (*flags, *SHORT)
    other = ("TRAINER.COOP.N_CTX", 8)
    assert_refused(run(*model, *other, out="other"), "other settings: TRAINER.COOP.N_CTX 16 -> 8")
    assert_refused(run("--allow-mismatch", *model, *other, out="other"), "its context has 16 tokens, not 8")
    path = trained.checkpoint(1)
    path.write_bytes(path.read_bytes()[:1000])
    assert_refused(run(*model, out="other"), path, "(damaged?)")
    assert_refused(run(*SHORT, "TRAINER.NAME", "CoOpp"), "CoOpp")
    assert trained.record["accuracy"] is not None  # a run that cannot begin leaves an older result alone
    assert_refused(run(*SHORT), path, "(damaged?)")


def test_an_output_directory_that_cannot_be_written_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert_refused(run(*SHORT, out="file/run"), tmp_path / "file/run")


@pytest.fixture
def imagenet(imagenet_root, run):
    """A function that runs one shot and one epoch on the small ImageNet."""

    def call(*arguments):
        dataset = REPOSITORY / "configs/datasets/imagenet.yaml"
        return run("--root", imagenet_root, "--dataset-config-file", dataset, *SHORT, *arguments)

    return call


def test_a_missing_data_root_is_refused(imagenet, imagenet_root):
    shutil.rmtree(imagenet_root)
    assert_refused(imagenet(), imagenet_root / "imagenet/images/train", "--root", "tools/prepare_imagenette.py")


def test_an_invalid_file_of_class_names_is_refused(imagenet, imagenet_root):
    path = imagenet_root / "imagenet/classnames.txt"
    path.unlink()
    assert_refused(imagenet(), path, "tools/fix_imagenet.py --root")
    path.write_text("n01440764 tench\nn02102040 English springer\n", encoding="utf-8")
    assert_refused(imagenet(), "no name for the folders n03028079")
    path.write_text("n01440764 tench\nn02102040\n", encoding="utf-8")
    assert_refused(imagenet(), f"{path}, line 2")
    text = "".join(f"{wnid} 鱼 {name}\n" for wnid, name in WNIDS.items())
    path.write_bytes(text.encode("gbk"))
    assert_refused(imagenet(), path, "not UTF-8")
    path.write_bytes(text.encode("utf-8-sig"))
    assert imagenet().code == 0


def test_a_missing_empty_or_foreign_class_folder_is_refused(imagenet, imagenet_root):
    folder = imagenet_root / "imagenet/images/train/n02102040"
    shutil.rmtree(folder)
    assert_refused(imagenet(), "images/train lacks", "n02102040")
    folder.mkdir()
    assert_refused(imagenet(), folder, "is empty")
    (folder / "notes.txt").write_text("remember the milk", encoding="utf-8")
    assert_refused(imagenet(), folder / "notes.txt", "is not an image")


@pytest.mark.parametrize("is_left", [False, True])
def test_a_class_without_test_images_is_allowed_and_named(imagenet, imagenet_root, is_left):
    folder = imagenet_root / "imagenet/images/val/n02102040"
    shutil.rmtree(folder)
    if is_left:
        folder.mkdir()
    result = imagenet("TEST.PER_CLASS_RESULT", True)
    assert result.code == 0, result.error
    assert "Note: no test images for the class English springer: they are not in the accuracy" in result.log
    assert "* total: 4" in result.log
    assert "* class: 2 (church)" in result.log
    assert "* class: 1 " not in result.log
    assert result.record["classnames"] == ["tench", "English springer", "church"]


def test_a_class_with_fewer_images_than_shots_gives_all_and_is_printed(imagenet, imagenet_root):
    next((imagenet_root / "imagenet/images/train/n02102040").iterdir()).unlink()
    result = imagenet("DATASET.NUM_SHOTS", 5)
    assert result.code == 0
    assert "fewer than 5 images, so all there are, for English springer (4)" in result.log
    assert "# train_x  14" in result.log


def test_a_console_that_cannot_encode_a_message_shows_it_escaped(monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), "cp1252", write_through=True)
    monkeypatch.setattr(sys, "stderr", console)
    assert train.main(["--trainer", "鱼"]) == 2
    assert rb'unknown trainer "\u9c7c"' in console.buffer.getvalue()


def test_ctrl_c_before_training_prints_how_to_begin_anew(run, monkeypatch):
    monkeypatch.setattr("trainers.coop.CoOp.build_model", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    result = run(*SHORT)
    assert result.code == 130
    assert result.error == "\nstopped before training; the same command starts again\n"


def test_an_error_of_the_program_is_raised(run, monkeypatch):
    monkeypatch.setattr("trainers.coop.CoOp.forward_backward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(*SHORT)


def test_help_lists_every_trainer_and_data_set_and_its_examples_run(capsys, digits_root, tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)  # as the examples assume
    with pytest.raises(SystemExit) as exit_:
        train.main(["--help"])
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    for package, registry in ((trainers, TRAINER_REGISTRY), (datasets, DATASET_REGISTRY)):
        package, folder = package.__name__, str(Path(package.__file__).parent)  # tests register further ones
        names = [name for name in registry.registered_names() if getfile(registry.get(name)).startswith(folder)]
        assert sorted(train.list_registered(package)) == sorted(names)
        assert all(re.search(rf"\b{name}\b", text.partition("\ntrainers:\n")[2]) for name in names)
    commands = [shlex.split(line) for line in text.replace("\\\n", "").splitlines() if "python train.py" in line]
    assert len(commands) == 3
    for command in commands:
        cfg = train.setup_cfg(train.parse_args(command[2:]))  # its files and keys are there
        if cfg.MODEL.BACKBONE.NAME == "tiny":  # without a download
            folder = tmp_path / cfg.TRAINER.NAME
            changes = {"./data": str(digits_root), cfg.OUTPUT_DIR: str(folder)}
            words = [changes.get(word, word) for word in command[2:]]
            assert train.main([*words, "OPTIM.MAX_EPOCH", "1"]) == 0
            assert (folder / "result.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"ZeroshotCLIP", "CoOp"}


def test_version(capsys):
    for program in (train, predict):
        with pytest.raises(SystemExit) as exit_:
            program.main(["--version"])
        assert (exit_.value.code, capsys.readouterr().out) == (0, f"coop-dassl {__version__}\n")


def test_help_and_a_mistyped_flag_need_no_torch():
    script = "import sys, train, atexit; atexit.register(lambda: print('torch' in sys.modules)); train.main()"
    for argument, code, text in (("--help", 0, "--eval-only"), ("--evil-only", 2, "unrecognized")):
        command = [sys.executable, "-c", script, argument]
        result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert result.returncode == code
        assert text in result.stdout + result.stderr
        assert result.stdout.endswith("False\n")
