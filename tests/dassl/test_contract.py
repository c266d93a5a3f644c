"""The contract with repositories of the CoOp family: the names of ``dassl`` that they use, and their signatures.

Other files test the behaviour (test_engine.py, test_data.py, test_utils.py, test_train.py, …); tests/third_party runs a
repository.
"""

import copy
import importlib
import inspect
import math
import random
import re

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F
from yacs.config import CfgNode

import train
from dassl.config import clean_cfg, get_cfg_default, to_dict
from dassl.config.merge import flatten
from dassl.data import DataManager, DatasetWrapper
from dassl.data.datasets import build_dataset
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY, TrainerX, TrainerXU, build_trainer
from dassl.evaluation import build_evaluator
from dassl.modeling.ops.utils import create_onehot, ema_model_update, linear_rampup, sharpen_prob, sigmoid_rampup
from dassl.utils import UserError, check_isfile, collect_env_info, mkdir_if_missing, set_random_seed

IMPORTS = {
    "dassl.engine": "TRAINER_REGISTRY TrainerX TrainerXU build_trainer TrainerBase SimpleTrainer",
    "dassl.engine.trainer": "AverageMeter MetricMeter SummaryWriter",
    "dassl.data": "DataManager DatasetWrapper",
    "dassl.data.data_manager": "DataManager",
    "dassl.data.transforms": "build_transform",
    "dassl.data.transforms.transforms": "build_transform",
    "dassl.data.datasets": "DATASET_REGISTRY Datum DatasetBase build_dataset",
    "dassl.data.datasets.base_dataset": "Datum DatasetBase",
    "dassl.utils": """setup_logger set_random_seed collect_env_info load_checkpoint save_checkpoint
        resume_from_checkpoint load_pretrained_weights mkdir_if_missing read_json write_json listdir_nohidden
        check_isfile read_image count_num_param MetricMeter AverageMeter Registry tolist_if_not check_availability""",
    "dassl.utils.tools": """mkdir_if_missing check_isfile read_json write_json set_random_seed read_image
        collect_env_info listdir_nohidden check_availability tolist_if_not""",
    "dassl.utils.torchtools": """save_checkpoint load_checkpoint resume_from_checkpoint load_pretrained_weights
        count_num_param""",
    "dassl.optim": "build_optimizer build_lr_scheduler",
    "dassl.optim.radam": "RAdam",
    "dassl.metrics": "compute_accuracy",
    "dassl.evaluation": "build_evaluator EVALUATOR_REGISTRY Classification",
    "dassl.evaluation.build": "build_evaluator EVALUATOR_REGISTRY",
    "dassl.config": "get_cfg_default clean_cfg",
}
DEFAULTS = """
VERSION: 1
OUTPUT_DIR: ./output
RESUME: ""
SEED: -1
USE_CUDA: true
VERBOSE: true
INPUT: {SIZE: [224, 224], INTERPOLATION: bilinear, TRANSFORMS: [], NO_TRANSFORM: false, CROP_PADDING: 4,
  PIXEL_MEAN: [0.485, 0.456, 0.406], PIXEL_STD: [0.229, 0.224, 0.225], RRCROP_SCALE: [0.08, 1.0]}
DATASET: {NAME: "", SOURCE_DOMAINS: [], TARGET_DOMAINS: [], NUM_LABELED: -1, NUM_SHOTS: -1, VAL_PERCENT: 0.1}
DATALOADER:
  NUM_WORKERS: 4
  K_TRANSFORMS: 1
  RETURN_IMG0: false
  TRAIN_X: {SAMPLER: RandomSampler, BATCH_SIZE: 32, N_DOMAIN: 0, N_INS: 16}
  TRAIN_U: {SAME_AS_X: true, SAMPLER: RandomSampler, BATCH_SIZE: 32, N_DOMAIN: 0, N_INS: 16}
  TEST: {SAMPLER: SequentialSampler, BATCH_SIZE: 32}
MODEL:
  INIT_WEIGHTS: ""
  BACKBONE: {NAME: "", PRETRAINED: true}
  HEAD: {NAME: "", HIDDEN_LAYERS: [], ACTIVATION: relu, BN: true, DROPOUT: 0.0}
OPTIM: {NAME: adam, LR: 0.0003, WEIGHT_DECAY: 0.0005, MOMENTUM: 0.9, SGD_DAMPNING: 0, SGD_NESTEROV: false,
  RMSPROP_ALPHA: 0.99, ADAM_BETA1: 0.9, ADAM_BETA2: 0.999, STAGED_LR: false, NEW_LAYERS: [], BASE_LR_MULT: 0.1,
  LR_SCHEDULER: single_step, STEPSIZE: [-1], GAMMA: 0.1, MAX_EPOCH: 10, WARMUP_EPOCH: -1, WARMUP_TYPE: linear,
  WARMUP_CONS_LR: 0.00001, WARMUP_MIN_LR: 0.00001, WARMUP_RECOUNT: true}
TRAIN: {CHECKPOINT_FREQ: 0, PRINT_FREQ: 10, COUNT_ITER: train_x}
TEST: {EVALUATOR: Classification, PER_CLASS_RESULT: false, COMPUTE_CMAT: false, NO_TEST: false, SPLIT: test,
  FINAL_MODEL: last_step}
TRAINER: {NAME: ""}
"""
SIGNATURES = {  # parameters: methods that third-party trainers call or override
    "": "train build_model build_data_loader before_train after_train before_epoch after_epoch run_epoch",
    "names": "get_model_names update_lr get_current_lr model_zero_grad model_update",
    "mode names": "set_model_mode",
    "name model optim sched": "register_model",
    "loss": "detect_anomaly model_backward",
    "loss names": "model_backward_and_update",
    "log_dir": "init_writer",
    "tag scalar_value global_step": "write_scalar",
    "epoch directory is_best val_result model_name": "save_model",
    "directory epoch": "load_model",
    "directory": "resume_model_if_exist",
    "cfg": "check_cfg",
    "batch": "forward_backward parse_batch_train parse_batch_test",
    "input": "model_inference",
    "split is_final": "test",  # some versions of Dassl pass is_final after training
}


@TRAINER_REGISTRY.register()
class BothKinds(TrainerXU):
    """Learns from labelled images, and runs the model on unlabelled ones."""

    def build_model(self):
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, self.num_classes)).to(self.device)
        self.register_model("linear", self.model, torch.optim.SGD(self.model.parameters(), lr=0.01))
        self.batches = []

    def forward_backward(self, batch_x, batch_u):
        input_x, label_x, input_u = self.parse_batch_train(batch_x, batch_u)
        assert torch.equal(input_x.cpu(), batch_x["img"])
        assert torch.equal(input_u.cpu(), batch_u["img"])
        self.batches.append((self.epoch, batch_x["index"].tolist(), batch_u["index"].tolist()))
        loss = F.cross_entropy(self.model(input_x), label_x) + 0 * self.model(input_u).sum()
        self.model_backward_and_update(loss)
        return {"loss": loss.item()}


# ---- names, settings, flags ----


def test_every_public_name_can_be_imported():
    for module, names in IMPORTS.items():
        for name in names.split():
            assert hasattr(importlib.import_module(module), name), (module, name)


def test_config_defaults_are_dassls():
    assert isinstance(get_cfg_default(), CfgNode)
    defaults = dict(flatten(to_dict(get_cfg_default())))
    assert "DATASET.ROOT" in defaults
    expected = dict(flatten(yaml.safe_load(DEFAULTS)))
    assert {key: defaults.get(key) for key in expected} == expected


def test_a_train_py_of_the_field_adds_its_nodes_and_merges_with_yacs(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("INPUT:\n  SIZE: (32, 48)\nOPTIM:\n  WARMUP_CONS_LR: 1e-5\nTRAINER:\n  MINE:\n    N_CTX: 4\n")
    cfg = get_cfg_default()
    cfg.TRAINER.MINE, cfg.TRAINER.OTHER = CfgNode({"N_CTX": 16}), CfgNode({"PREC": "fp16"})
    cfg.merge_from_file(str(path))
    cfg.merge_from_list(["OPTIM.LR", "2e-3"])
    clean_cfg(cfg, "Mine")
    cfg.freeze()
    assert (cfg.INPUT.SIZE, cfg.OPTIM.WARMUP_CONS_LR, cfg.OPTIM.LR) == ((32, 48), 1e-5, 0.002)
    assert dict(cfg.TRAINER) == {"NAME": "", "MINE": {"N_CTX": 4}}


def test_train_py_takes_dassls_flags(tmp_path):
    (tmp_path / "data.yaml").write_text("DATASET:\n  NAME: Digits\n")
    (tmp_path / "method.yaml").write_text("OPTIM:\n  MAX_EPOCH: 7\n")
    flags = f"""--root r --output-dir o --resume there --seed 0 --source-domains a b --target-domains c
        --transforms random_flip normalize --config-file {tmp_path}/method.yaml
        --dataset-config-file {tmp_path}/data.yaml --trainer CoOp --backbone RN50 --head mlp --eval-only
        --model-dir m --load-epoch 5 --no-train OPTIM.LR 0.5"""
    args = train.parse_args(flags.split())
    assert (args.eval_only, args.model_dir, args.load_epoch, args.no_train) == (True, "m", 5, True)
    cfg = train.setup_cfg(args)
    assert (cfg.DATASET.ROOT, cfg.OUTPUT_DIR, cfg.RESUME, cfg.SEED) == ("r", "o", "there", 0)
    assert (cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS) == (("a", "b"), ("c",))
    assert cfg.INPUT.TRANSFORMS == ("random_flip", "normalize")
    assert (cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME, cfg.MODEL.HEAD.NAME) == ("CoOp", "RN50", "mlp")
    assert (cfg.DATASET.NAME, cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.LR) == ("Digits", 7, 0.5)


# ---- trainers and their batches ----


def test_methods_of_a_trainer_have_dassls_parameters():
    for expected, methods in SIGNATURES.items():
        for method in methods.split():
            parameters = list(inspect.signature(getattr(TrainerX, method)).parameters)
            assert parameters[: 1 + len(expected.split())] == ["self", *expected.split()], method


def test_custom_transforms_and_wrapper_reach_the_batches(make_config):
    class Halved(DatasetWrapper):
        def __getitem__(self, idx):
            item = super().__getitem__(idx)
            return {**item, "img": item["img"] / 2}

    cfg = make_config("BothKinds", DATALOADER__RETURN_IMG0=True)
    plain = build_transform(cfg, is_train=False)
    dm = DataManager(cfg, custom_tfm_train=[plain, plain], custom_tfm_test=plain, dataset_wrapper=Halved)
    batch = next(iter(dm.train_loader_x))
    assert set(batch) == {"img", "img2", "img0", "label", "domain", "impath", "index"}
    assert torch.equal(batch["img"] * 2, batch["img2"])
    assert len(next(iter(dm.test_loader))["img"]) == 8
    assert type(dm.dataset) is type(build_dataset(cfg))


@pytest.mark.parametrize(("count", "number"), [("train_x", 3), ("train_u", 5), ("smaller_one", 3)])
def test_an_epoch_of_pairs_is_as_long_as_count_iter_says(make_config, count, number, capsys):
    trainer = build_trainer(make_config("BothKinds", TRAIN__COUNT_ITER=count, OPTIM__MAX_EPOCH=2))
    trainer.train()
    assert [epoch for epoch, _, _ in trainer.batches] == [epoch for epoch in range(2) for _ in range(number)]
    last = rf"^epoch \[2/2\] batch \[{number}/{number}\] time .* data .* loss .* lr 1.0000e-02 eta 0"
    assert re.search(last, capsys.readouterr().out, re.MULTILINE)


def test_the_shorter_loader_starts_again_in_another_order_which_a_resumed_run_repeats(make_config, tmp_path):
    cfg = make_config("BothKinds", TRAIN__COUNT_ITER="train_u", TRAIN__CHECKPOINT_FREQ=1, OPTIM__MAX_EPOCH=3)
    unbroken = build_trainer(cfg)
    unbroken.train()
    orders = []
    for epoch in range(3):
        batches = [x for e, x, _ in unbroken.batches if e == epoch]
        assert sorted(i for x in batches[:3] for i in x) == list(range(12))
        orders += [batches[0] + batches[1], batches[3] + batches[4]]  # of the first pass, and of the second
        assert sorted(i for e, _, u in unbroken.batches if e == epoch for i in u) == list(range(20))
    assert len(set(map(tuple, orders))) == 6
    (tmp_path / "run/linear/checkpoint").write_text("model.pth.tar-2\n")
    resumed = build_trainer(cfg)
    resumed.train()
    assert resumed.batches == unbroken.batches  # the attribute is in the checkpoints


def test_pairs_without_unlabelled_images_or_with_an_unknown_count_iter_are_refused(make_config):
    with pytest.raises(UserError, match="TRAIN.COUNT_ITER"):
        build_trainer(make_config("BothKinds", TRAIN__COUNT_ITER="train_z")).train()
    trainer = build_trainer(make_config("BothKinds"))
    trainer.train_loader_u = None
    with pytest.raises(UserError, match="needs unlabelled images"):
        trainer.train()


# ---- results, helpers, operations on tensors ----


def test_results_are_written_as_parsers_read_them(capsys):
    cfg = get_cfg_default()
    cfg.TEST.PER_CLASS_RESULT = True
    evaluator = build_evaluator(cfg, lab2cname={0: "cassette player", 3: "tench"})
    for label, total, correct in ((3, 387, 380), (0, 3538, 3486)):
        truth = torch.full((total,), label)
        predicted = torch.where(torch.arange(total) < correct, truth, 3 - truth)
        evaluator.process(F.one_hot(predicted, 4).float(), truth)
    evaluator.evaluate()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == ["=> result", "* total: 3,925", "* correct: 3,866", "* accuracy: 98.50%", "* error: 1.50%"]
    assert re.fullmatch(r"\* macro_f1: \d\d\.\d\d%", lines[5])
    assert "* class: 3 (tench)\ttotal: 387\tcorrect: 380\tacc: 98.19%" in lines
    assert lines[-1] == "* average: 98.36%"
    assert re.findall(r"\* accuracy: ([\.\deE+-]+)%", "\n".join(lines)) == ["98.50"]


def test_seeds_repeat_draws_and_missing_files_are_reported(tmp_path, capsys):
    set_random_seed(0)
    draws = random.random(), np.random.rand(), torch.rand(1)
    set_random_seed(0)
    assert (random.random(), np.random.rand(), torch.rand(1)) == draws
    mkdir_if_missing(str(tmp_path / "a/b"))
    assert not check_isfile(str(tmp_path / "a/b"))
    assert "No file found" in capsys.readouterr().out
    assert torch.__version__.partition("+")[0] in collect_env_info()


def test_labels_become_one_hot_and_probabilities_are_sharpened():
    assert torch.equal(create_onehot(torch.tensor([2, 0]), 3), torch.tensor([[0.0, 0, 1], [1, 0, 0]]))
    p = torch.tensor([[0.8, 0.2], [0.5, 0.5]])
    torch.testing.assert_close(sharpen_prob(p), torch.tensor([[0.64 / 0.68, 0.04 / 0.68], [0.5, 0.5]]))
    torch.testing.assert_close(sharpen_prob(p, 1), p)


def test_ramp_ups_go_from_0_to_1():
    assert [linear_rampup(t, 10) for t in (-1, 0, 5, 10, 20)] == [0, 0, 0.5, 1, 1]
    expected = [math.exp(-5), math.exp(-5), math.exp(-1.25), 1, 1]
    assert [sigmoid_rampup(t, 10) for t in (-1, 0, 5, 10, 20)] == pytest.approx(expected)
    with pytest.raises(ValueError, match="above 0"):
        linear_rampup(1, 0)


def test_a_moving_average_of_a_model_is_updated_in_place():
    model = nn.Linear(2, 2)
    average = copy.deepcopy(model)
    before = average.weight.detach().clone()
    nn.init.ones_(model.weight)
    ema_model_update(model, average, 0.75)
    torch.testing.assert_close(average.weight.detach(), 0.75 * before + 0.25)
    assert torch.equal(model.weight, torch.ones(2, 2))
