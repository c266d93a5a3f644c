import os
import os.path as osp
import random

import torch
import torch.nn as nn
from clip import clip
from clip.simple_tokenizer import SimpleTokenizer as _Tokenizer
from torch.amp import GradScaler, autocast
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import count_num_param, load_checkpoint, load_pretrained_weights

_tokenizer = _Tokenizer()


class PromptLearner(nn.Module):
    def __init__(self, cfg, classnames, clip_model):
        super().__init__()
        n_ctx = cfg.TRAINER.MYCOOP.N_CTX
        width = clip_model.token_embedding.embedding_dim
        assert cfg.INPUT.SIZE[0] == 8
        self.ctx = nn.Parameter(torch.randn(len(classnames), n_ctx, width) * 0.02)
        names = [name.replace("_", " ") for name in classnames]
        self.name_lens = [len(_tokenizer.encode(name)) for name in names]
        tokens = torch.cat([clip.tokenize("X" * n_ctx + name) for name in names])
        with torch.no_grad():
            embedding = clip_model.token_embedding(tokens)
        # Buffers, so that checkpoints hold the embeddings of class names, too.
        self.register_buffer("token_prefix", embedding[:, :1])
        self.register_buffer("token_suffix", embedding[:, 1 + n_ctx :])

    def forward(self):
        return torch.cat([self.token_prefix, self.ctx, self.token_suffix], dim=1)


class CustomCLIP(nn.Module):
    def __init__(self, cfg, classnames, clip_model):
        super().__init__()
        self.prompt_learner = PromptLearner(cfg, classnames, clip_model)
        self.clip = clip_model

    def forward(self, image):
        image_features = F.normalize(self.clip.encode_image(image), dim=-1)
        prompts = torch.tanh(self.prompt_learner()).mean(dim=1)
        text_features = F.normalize(self.clip.text_projection(prompts), dim=-1)
        return self.clip.logit_scale.exp() * image_features @ text_features.t()


@TRAINER_REGISTRY.register()
class MyCoOp(TrainerX):
    def check_cfg(self, cfg):
        assert cfg.TRAINER.MYCOOP.PREC == "amp"

    def build_model(self):
        cfg = self.cfg
        classnames = self.dm.dataset.classnames
        assert [self.lab2cname[label] for label in range(self.num_classes)] == classnames
        print(f"Loading CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        self.model = CustomCLIP(cfg, classnames, clip.load(cfg.MODEL.BACKBONE.NAME))
        for name, param in self.model.named_parameters():
            if "prompt_learner" not in name:
                param.requires_grad_(False)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model.prompt_learner, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        print(f"# params: {count_num_param(self.model.prompt_learner):,}")
        self.optim = build_optimizer(self.model.prompt_learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("prompt_learner", self.model.prompt_learner, self.optim, self.sched)
        self.scaler = GradScaler(self.device.type)

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        if random.random() < 0.5:
            image = image + 0.1 * torch.randn_like(image)
        with autocast(self.device.type):
            output = self.model(image)
            loss = F.cross_entropy(output, label)
        self.optim.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optim)
        self.scaler.update()
        loss_summary = {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return loss_summary

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def after_epoch(self):
        super().after_epoch()
        if self.epoch + 1 == int(os.environ.get("STOP_AFTER", 0)):
            raise SystemExit("stopped")

    def load_model(self, directory, epoch=None):
        model_file = "model-best.pth.tar" if epoch is None else f"model.pth.tar-{epoch}"
        for name in self.get_model_names():
            model_path = osp.join(directory, name, model_file)
            checkpoint = load_checkpoint(model_path)
            state_dict = checkpoint["state_dict"]
            del state_dict["token_prefix"]
            del state_dict["token_suffix"]
            print(f'Loading weights to {name} from "{model_path}" (epoch = {checkpoint["epoch"]})')
            self._models[name].load_state_dict(state_dict, strict=False)
