import os
import random

import numpy as np
import torch
import torch.nn as nn
from clip import clip
from torch.nn import functional as F
from tqdm import tqdm

from dassl.data import DataManager, DatasetWrapper
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import AverageMeter


class CountingWrapper(DatasetWrapper):
    def __getitem__(self, idx):
        item = super().__getitem__(idx)
        item["views"] = 2 if "img2" in item else 1
        return item


@TRAINER_REGISTRY.register()
class TwoHeads(TrainerX):
    """Two models that are trained one after the other, two views an image, and random draws of all kinds."""

    def check_cfg(self, cfg):
        assert cfg.TRAINER.TWOHEADS.DROPOUT >= 0

    def build_data_loader(self):
        cfg = self.cfg
        strong = build_transform(cfg, is_train=True, choices=("random_resized_crop", "random_flip", "normalize"))
        dm = DataManager(
            cfg, custom_tfm_train=[build_transform(cfg, is_train=True), strong], dataset_wrapper=CountingWrapper
        )
        self.train_loader_x = dm.train_loader_x
        self.train_loader_u = dm.train_loader_u
        self.val_loader = dm.val_loader
        self.test_loader = dm.test_loader
        self.num_classes = dm.num_classes
        self.num_source_domains = dm.num_source_domains
        self.lab2cname = dm.lab2cname
        self.dm = dm

    def build_model(self):
        cfg = self.cfg
        print(f"{self.num_source_domains} source domains, unlabelled images: {self.train_loader_u is not None}")
        self.clip = clip.load(cfg.MODEL.BACKBONE.NAME).to(self.device)
        self.adapter = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Dropout(cfg.TRAINER.TWOHEADS.DROPOUT))
        self.head = nn.Linear(16, self.num_classes)
        for name in ["adapter", "head"]:
            model = getattr(self, name).to(self.device)
            optim = build_optimizer(model, cfg.OPTIM)
            self.register_model(name, model, optim, build_lr_scheduler(optim, cfg.OPTIM))
        self.register_model("teacher", nn.Linear(16, self.num_classes).to(self.device))
        self.optim, self.sched = self._optims["adapter"], self._scheds["adapter"]

    def model_inference(self, input):
        return self.head(self.adapter(self.clip.encode_image(input)))

    def before_train(self):
        super().before_train()
        self.loss_meter = AverageMeter()
        print(f"Training {', '.join(self.get_model_names())} from epoch {self.start_epoch + 1} of {self.max_epoch}")

    def before_epoch(self):
        self.set_model_mode("train", ["adapter", "head"])
        self.set_model_mode("eval", "teacher")

    def forward_backward(self, batch):
        image, image2, label = self.parse_batch_train(batch)
        share = np.random.beta(2, 2) if random.random() < 0.8 else torch.rand(1).item()
        output = self.model_inference(share * image + (1 - share) * image2)
        loss = F.cross_entropy(output, label)
        self.detect_anomaly(loss)
        self.model_zero_grad("adapter")
        self.model_backward(loss)
        self.model_update(["adapter"])
        with torch.no_grad():
            features = self.adapter(self.clip.encode_image(image2))
            guide = self._models["teacher"](features).softmax(dim=-1)
        loss_head = F.cross_entropy(self.head(features), 0.9 * F.one_hot(label, self.num_classes) + 0.1 * guide)
        self.model_backward_and_update(loss_head, names=["head"])
        self.loss_meter.update(loss.item())
        self.write_scalar("train/share", share, self.epoch * self.num_batches + self.batch_idx)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr(["adapter", "head"])
        return {
            "loss": loss.item(),
            "loss_head": loss_head.item(),
            "acc": compute_accuracy(output, label)[0].item(),
        }

    def parse_batch_train(self, batch):
        assert batch["views"].tolist() == [2] * len(batch["impath"])
        return batch["img"].to(self.device), batch["img2"].to(self.device), batch["label"].to(self.device)

    def parse_batch_test(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def after_epoch(self):
        super().after_epoch()
        print(f"mean loss {self.loss_meter.avg:.4f}, next rate {self.get_current_lr(['head']):.3e}")
        if self.epoch + 1 == int(os.environ.get("STOP_AFTER", 0)):
            raise SystemExit("stopped")

    def after_train(self):
        print(f"best on validation: {self.best_result:.2f}, of {type(self.scaler)} in {self.output_dir}")
        super().after_train()

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = split or self.cfg.TEST.SPLIT
        data_loader = self.val_loader if split == "val" and self.val_loader is not None else self.test_loader
        print(f"Evaluate on the *{split}* set")
        for batch in tqdm(data_loader):
            input, label = self.parse_batch_test(batch)
            self.evaluator.process(self.model_inference(input), label)
        results = self.evaluator.evaluate()
        for key, value in results.items():
            self.write_scalar(f"{split}/{key}", value, self.epoch)
        return next(iter(results.values()))
