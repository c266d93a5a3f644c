"""Names that repositories of the wider family import, beside those of test_contract.py, and what stands behind them."""

import copy
import importlib
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

import dassl.data.transforms
import dassl.utils
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.data.transforms.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY, TrainerXU, build_trainer
from dassl.evaluation import Classification
from dassl.evaluation.build import EVALUATOR_REGISTRY, build_evaluator
from dassl.modeling.ops.utils import create_onehot, ema_model_update, linear_rampup, sharpen_prob, sigmoid_rampup
from dassl.optim import build_lr_scheduler
from dassl.optim.lr_scheduler import ConstantWarmupScheduler, LinearWarmupScheduler
from dassl.optim.radam import RAdam
from dassl.utils import UserError

# ---- names ----


@pytest.mark.parametrize(
    ("module", "names"),
    {
        "tools": """mkdir_if_missing check_isfile read_json write_json set_random_seed read_image collect_env_info
            listdir_nohidden check_availability tolist_if_not""",
        "torchtools": """save_checkpoint load_checkpoint resume_from_checkpoint load_pretrained_weights
            count_num_param""",
    }.items(),
)
def test_modules_of_dassl_utils(module, names):
    found = importlib.import_module(f"dassl.utils.{module}")
    assert sorted(found.__all__) == sorted(names.split())
    for name in names.split():
        assert getattr(found, name) is getattr(dassl.utils, name)


def test_the_same_thing_under_both_names():
    assert dassl.data.transforms.build_transform is build_transform
    assert dassl.evaluation.EVALUATOR_REGISTRY is EVALUATOR_REGISTRY
    assert dassl.evaluation.build_evaluator is build_evaluator
    assert RAdam is torch.optim.RAdam
    assert EVALUATOR_REGISTRY._obj_map["Classification"] is Classification


# ---- warm-ups ----


def schedules(warmup: str, after: str):
    """An optimizer with the schedule built by hand, and one with ours, for the same settings."""
    optim = get_cfg_default().OPTIM
    optim.LR, optim.MAX_EPOCH, optim.WARMUP_EPOCH, optim.WARMUP_TYPE, optim.LR_SCHEDULER = 0.1, 9, 3, warmup, after
    optim.STEPSIZE, optim.GAMMA = (2, 4), 0.5
    one, other = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1) for _ in range(2))
    successor = CosineAnnealingLR(one, 9) if after == "cosine" else MultiStepLR(one, [2, 4], 0.5)
    kind = {"constant": ConstantWarmupScheduler, "linear": LinearWarmupScheduler}[warmup]
    return (one, kind(one, successor, 3, 1e-5)), (other, build_lr_scheduler(other, optim))


def rates(optimizer, schedule, epochs: int) -> list[float]:
    result = []
    for _ in range(epochs):
        assert schedule.get_last_lr() == [optimizer.param_groups[0]["lr"]]
        result += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    return result


@pytest.mark.parametrize("after", ["cosine", "multi_step"])
@pytest.mark.parametrize("warmup", ["constant", "linear"])
def test_a_warmup_follows_our_curve_and_resumes(warmup, after, tmp_path):
    by_hand, ours = schedules(warmup, after)
    expected = rates(*ours, 12)
    assert len(set(expected)) >= 4
    for stop in (2, 3, 6):
        by_hand, _ = schedules(warmup, after)
        assert rates(*by_hand, stop) == pytest.approx(expected[:stop])
        torch.save([part.state_dict() for part in by_hand], tmp_path / "state")
        resumed, _ = schedules(warmup, after)
        for part, state in zip(resumed, torch.load(tmp_path / "state", weights_only=True), strict=True):
            part.load_state_dict(state)
        assert rates(*resumed, 12 - stop) == pytest.approx(expected[stop:])


def test_no_warmup_is_the_successor_alone():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = ConstantWarmupScheduler(optimizer, MultiStepLR(optimizer, [1], 0.5), -1, 1e-5)
    assert rates(optimizer, schedule, 2) == [0.1, 0.05]


# ---- the evaluator's counts ----


def logits(predicted: list[int]) -> torch.Tensor:
    return F.one_hot(torch.tensor(predicted), 3).float()


def test_counts_of_an_evaluator():
    evaluator = build_evaluator(get_cfg_default(), lab2cname={})
    for _ in range(2):
        evaluator.reset()
        evaluator.process(logits([0, 1]), torch.tensor([0, 2]))
        evaluator.process(logits([2]), torch.tensor([2]))
        assert (evaluator._correct, evaluator._total) == (2, 3)
        assert evaluator._per_class_res == {0: [1], 2: [0, 1]}


def test_an_evaluator_that_counts_by_itself():
    class Lenient(Classification):
        """What is in the two best counts."""

        def __init__(self, cfg, lab2cname=None, **kwargs):
            super().__init__(cfg, lab2cname)
            self._correct = self._total = 0
            self._per_class_res = None

        def reset(self):
            super().reset()
            self._correct, self._total = 0, 0

        def process(self, mo, gt):
            self._correct += int((mo.topk(2).indices == gt[:, None]).any(dim=1).sum())
            self._total += len(gt)
            self._y_true.extend(gt.tolist())
            self._y_pred.extend(mo.argmax(dim=1).tolist())

    evaluator = Lenient(get_cfg_default())
    evaluator.reset()
    evaluator.process(torch.tensor([[3.0, 2, 1], [3, 2, 1]]), torch.tensor([1, 2]))
    assert evaluator.evaluate()["accuracy"] == 50


# ---- labelled and unlabelled images ----


@DATASET_REGISTRY.register()
class FamilyNoise(DatasetBase):
    def __init__(self, cfg):
        rng, items = np.random.default_rng(0), []
        for i in range(10):
            path = f"{cfg.DATASET.ROOT}/{i}.png"
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
            items.append(Datum(impath=path, label=i % 2, domain=0, classname=f"class {i % 2}"))
        super().__init__(train_x=items[:4], train_u=items if cfg.DATASET.ALL_AS_UNLABELED else None, test=items)


@TRAINER_REGISTRY.register()
class FamilyTrainer(TrainerXU):
    def build_model(self):
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, self.num_classes)).to(self.device)
        self.register_model("linear", self.model, torch.optim.SGD(self.model.parameters(), lr=0.01))
        self.seen = []

    def forward_backward(self, batch_x, batch_u):
        input_x, label_x, input_u = self.parse_batch_train(batch_x, batch_u)
        assert torch.equal(input_x.cpu(), batch_x["img"])
        assert torch.equal(input_u.cpu(), batch_u["img"])
        self.seen.append((self.epoch, batch_x["index"].tolist(), batch_u["index"].tolist()))
        loss = F.cross_entropy(self.model(input_x), label_x) + 0 * self.model(input_u).sum()
        self.model_backward_and_update(loss)
        return {"loss": loss.item()}


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg_default()
    cfg.TRAINER.NAME, cfg.DATASET.NAME, cfg.DATASET.ALL_AS_UNLABELED = "FamilyTrainer", "FamilyNoise", True
    cfg.DATASET.ROOT, cfg.OUTPUT_DIR, cfg.SEED = str(tmp_path), str(tmp_path / "run"), 1
    cfg.INPUT.SIZE, cfg.DATALOADER.NUM_WORKERS, cfg.TRAIN.CHECKPOINT_FREQ = (8, 8), 0, 1
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.OPTIM.MAX_EPOCH = 2, 3
    return cfg


@pytest.mark.parametrize(("count", "number"), [("train_x", 2), ("train_u", 5), ("smaller_one", 2)])
def test_pairs_of_batches(cfg, count, number, capsys):
    cfg.TRAIN.COUNT_ITER = count
    trainer = build_trainer(cfg)
    trainer.train()
    assert [epoch for epoch, _, _ in trainer.seen] == [epoch for epoch in range(3) for _ in range(number)]
    log = capsys.readouterr().out
    assert re.search(
        rf"^epoch \[3/3\] batch \[{number}/{number}\] time .* data .* loss .* lr 1.0000e-02 eta 0", log, re.M
    )


def test_the_shorter_loader_starts_again_in_another_order_and_a_resumed_run_sees_the_same(cfg, tmp_path):
    cfg.TRAIN.COUNT_ITER = "train_u"
    whole = build_trainer(cfg)
    whole.train()
    passes = []
    for epoch in range(3):
        batches = [x for e, x, _ in whole.seen if e == epoch]
        passes += [batches[0] + batches[1], batches[2] + batches[3]]
        assert sorted(i for e, _, u in whole.seen if e == epoch for i in u) == list(range(10))
    assert all(sorted(indices) == list(range(4)) for indices in passes)
    assert (passes[1], passes[3]) != (passes[2], passes[4])  # an epoch does not begin with the last one's second pass
    assert all(passes[epoch] != passes[epoch + 1] for epoch in (0, 2, 4))  # and its own two passes are unlike
    (tmp_path / "run/linear/checkpoint").write_text("model.pth.tar-2\n")
    resumed = build_trainer(cfg)
    resumed.train()
    assert resumed.seen == whole.seen  # what it has seen before is in its checkpoints


def test_what_cannot_be_paired_is_refused(cfg):
    cfg.TRAIN.COUNT_ITER = "train_z"
    with pytest.raises(UserError, match="TRAIN.COUNT_ITER"):
        build_trainer(cfg).train()
    cfg.TRAIN.COUNT_ITER, cfg.DATASET.ALL_AS_UNLABELED = "train_x", False
    with pytest.raises(UserError, match="needs unlabelled images"):
        build_trainer(cfg).train()


# ---- operations ----


def test_labels_and_probabilities():
    assert torch.equal(create_onehot(torch.tensor([2, 0]), 3), torch.tensor([[0.0, 0, 1], [1, 0, 0]]))
    p = torch.tensor([[0.8, 0.2], [0.5, 0.5]])
    torch.testing.assert_close(sharpen_prob(p), torch.tensor([[0.64 / 0.68, 0.04 / 0.68], [0.5, 0.5]]))
    torch.testing.assert_close(sharpen_prob(p, 1), p)


def test_rampups():
    assert [linear_rampup(t, 10) for t in (-1, 0, 5, 10, 20)] == [0, 0, 0.5, 1, 1]
    expected = [math.exp(-5), math.exp(-5), math.exp(-1.25), 1, 1]
    assert [sigmoid_rampup(t, 10) for t in (-1, 0, 5, 10, 20)] == pytest.approx(expected)
    with pytest.raises(ValueError, match="above 0"):
        linear_rampup(1, 0)


def test_a_moving_average_of_a_model():
    model = nn.Linear(2, 2)
    average = copy.deepcopy(model)
    before = average.weight.detach().clone()
    nn.init.ones_(model.weight)
    ema_model_update(model, average, 0.75)
    torch.testing.assert_close(average.weight.detach(), 0.75 * before + 0.25)
    assert torch.equal(model.weight, torch.ones(2, 2))
