"""Few-shot sampling, random transforms, samplers, loaders."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dassl.config import get_cfg_default
from dassl.data import DataManager, DatasetWrapper
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.data.samplers import build_sampler
from dassl.data.transforms import build_transform
from dassl.utils import UserError, derive_seed, read_image, temporary_seed


def config(**values):
    """Return the default config with some values, such as ``INPUT__SIZE=(8, 8)``."""
    cfg = get_cfg_default()
    for key, value in values.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def items(per_class: dict[str, int]) -> list[Datum]:
    """Return as many items of each class as ``per_class`` states."""
    return [
        Datum(f"{name}/{i}", label, classname=name)
        for label, (name, count) in enumerate(per_class.items())
        for i in range(count)
    ]


class Plain(DatasetBase):
    pass


def test_a_class_with_too_few_images_gives_all_and_is_printed_or_repeats_images(capsys):
    source = items({"a": 10, "rare": 1})
    dataset = Plain(train_x=source)
    assert [d.classname for d in dataset.generate_fewshot_dataset(source, num_shots=3)] == ["a"] * 3 + ["rare"]
    assert "fewer than 3 images, so all there are, for rare (1)" in capsys.readouterr().out
    repeated = dataset.generate_fewshot_dataset(source, num_shots=3, repeat=True)
    assert [d.impath for d in repeated[3:]] == ["rare/0"] * 3


def test_a_class_of_exactly_num_shots_images_takes_a_random_sample_too():
    """As in the original, each class is one ``random.sample``; otherwise, later classes would get other images."""
    source = items({"a": 3, "b": 10})
    random.seed(3)
    expected = [*random.sample(source[:3], 3), *random.sample(source[3:], 3)]
    with temporary_seed(3):
        assert Plain(train_x=source).generate_fewshot_dataset(source, num_shots=3) == expected


def test_fewer_than_one_shot_gives_all_images():
    source = items({"a": 4})
    assert Plain(train_x=source).generate_fewshot_dataset(source, num_shots=0) is source
    assert Plain(train_x=source).generate_fewshot_dataset(source, source, num_shots=-1) == [source, source]


@pytest.fixture
def images(tmp_path):
    """Six images of noise, of two classes and three domains."""
    rng = np.random.default_rng(0)
    result = []
    for i in range(6):
        path = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
        result.append(Datum(path, i % 2, domain=i % 3, classname="ab"[i % 2]))
    return result


def batches(images, workers=0, epoch=0, **values):
    """Return the batches of an epoch of random crops."""
    crops = {"INPUT__SIZE": (8, 8), "INPUT__TRANSFORMS": ("random_resized_crop",)}
    cfg = config(**{"SEED": 1, "DATALOADER__NUM_WORKERS": workers, **crops, **values})
    loader = build_data_loader(cfg, "RandomSampler", images, 2, tfm=build_transform(cfg))
    loader.epoch = epoch
    return list(loader)


def test_draws_depend_on_seed_epoch_and_image_alone(images):
    def by_path(batches):
        return {p: image for batch in batches for p, image in zip(batch["impath"], batch["img"], strict=True)}

    one, other = by_path(batches(images)), by_path(batches(images[::-1], workers=2))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[path], other[path]) for path in one)
    for changed in ({"epoch": 1}, {"SEED": 2}):
        other = by_path(batches(images, **changed))
        assert not any(torch.equal(one[path], other[path]) for path in one)


def test_a_train_loader_counts_epochs_and_can_return_to_one(images):
    cfg = config(SEED=1, INPUT__SIZE=(8, 8), DATALOADER__NUM_WORKERS=0)
    loader = build_data_loader(cfg, "RandomSampler", images, 2, tfm=build_transform(cfg))
    orders = [torch.cat([batch["index"] for batch in loader]).tolist() for _ in range(3)]
    assert orders[0] != orders[1]
    loader.epoch = 1
    assert torch.cat([batch["index"] for batch in loader]).tolist() == orders[1]


def test_random_transforms_do_not_change_the_global_generators(images):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    batches(images)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("same", "size", "order"), [(True, 2, "shuffled"), (False, 3, "as listed")])
def test_unlabelled_images_are_loaded_by_train_u_or_by_train_x_with_same_as_x(images, same, size, order):
    @DATASET_REGISTRY.register(force=True)
    class Unlabelled(DatasetBase):
        def __init__(self, cfg):
            super().__init__(train_x=images, train_u=images, test=images)

    cfg = config(SEED=1, DATASET__NAME="Unlabelled", INPUT__SIZE=(8, 8), DATALOADER__NUM_WORKERS=0)
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.DATALOADER.TRAIN_U.SAME_AS_X = 2, same
    cfg.DATALOADER.TRAIN_U.BATCH_SIZE, cfg.DATALOADER.TRAIN_U.SAMPLER = 3, "SequentialSampler"
    indices = [batch["index"].tolist() for batch in DataManager(cfg).train_loader_u]
    assert {len(batch) for batch in indices} == {size}
    assert ([index for batch in indices for index in batch] == list(range(6))) == (order == "as listed")


def test_training_drops_a_last_batch_that_is_not_full_and_testing_keeps_it(images):
    cfg = config(INPUT__SIZE=(8, 8), DATALOADER__NUM_WORKERS=0, SEED=0)
    tfm = build_transform(cfg)
    assert [len(b["label"]) for b in build_data_loader(cfg, "RandomSampler", images, 4, tfm=tfm)] == [4]
    assert [len(b["label"]) for b in build_data_loader(cfg, "RandomSampler", images, 9, tfm=tfm)] == [6]
    loader = build_data_loader(cfg, "SequentialSampler", images, 4, tfm=tfm, is_train=False)
    assert [len(b["label"]) for b in loader] == [4, 2]


def test_a_loader_without_images_is_refused():
    with pytest.raises(UserError, match="no images for a loader"):
        build_data_loader(get_cfg_default(), data_source=[])


def test_without_a_transform_the_item_holds_the_pil_image(images):
    cfg = config(INPUT__NO_TRANSFORM=True)
    wrapper = DatasetWrapper(cfg, images, build_transform(cfg))
    assert isinstance(wrapper[0]["img"], Image.Image)
    cfg.DATALOADER.K_TRANSFORMS = 2
    with pytest.raises(UserError, match="K_TRANSFORMS"):
        DatasetWrapper(cfg, images, None, is_train=True)


def test_a_loader_that_does_not_count_epochs_draws_new_orders_and_transforms(images):
    """Third-party trainers build PyTorch's DataLoader with our data set and sampler."""
    cfg = config(SEED=1, INPUT__SIZE=(8, 8), INPUT__TRANSFORMS=("random_resized_crop",))
    wrapper = DatasetWrapper(cfg, images, transform=build_transform(cfg), is_train=True)
    loader = DataLoader(wrapper, 6, sampler=build_sampler("RandomSampler", cfg=cfg, data_source=images))
    epochs = []
    with temporary_seed(0):
        for _ in range(3):
            (batch,) = loader
            epochs.append(dict(zip(batch["index"].tolist(), batch["img"], strict=True)))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert not any(torch.equal(epochs[0][i], epochs[1][i]) for i in range(6))


def test_a_third_party_subclass_may_call_transform_image(images):
    class Pairs(DatasetWrapper):
        def __getitem__(self, idx):
            img0 = read_image(self.data_source[idx].impath)
            return {"img": self._transform_image(self.transform, img0), "img0": self.to_tensor(img0)}

    cfg = config(INPUT__SIZE=(8, 8))
    item = Pairs(cfg, images, transform=build_transform(cfg), is_train=True)[0]
    assert item["img"].shape == item["img0"].shape == (3, 8, 8)


def test_moved_data_gives_the_same_draws(images, tmp_path):
    def seed_below(root: Path, **values) -> int:
        """Return the seed of the moved image with this data root."""
        cfg = config(SEED=1, DATASET__ROOT=str(root), **values)
        return DatasetWrapper(cfg, [Datum(tmp_path / "new" / "0.png")], is_train=True).transform_seed(0, 0)

    assert seed_below(tmp_path / "new") == DatasetWrapper(
        config(SEED=1, DATASET__ROOT=str(tmp_path)), images, is_train=True
    ).transform_seed(0, 0)
    # DATASET.FOLDER counts as the root, whether it lies below DATASET.ROOT or not.
    assert seed_below(tmp_path, DATASET__FOLDER="new") == seed_below(
        tmp_path / "x", DATASET__FOLDER=str(tmp_path / "new")
    )


def test_images_with_one_name_in_two_folders_have_different_seeds(tmp_path):
    images = [Datum(tmp_path / folder / "0.png") for folder in ("cat", "dog")]
    wrapper = DatasetWrapper(config(SEED=1, DATASET__ROOT=str(tmp_path)), images, is_train=True)
    assert wrapper.transform_seed(0, 0) != wrapper.transform_seed(1, 0)


def test_derived_seeds_do_not_collide_and_are_the_same_on_every_machine():
    assert derive_seed(1, 2, "a") == 3395173595534000988  # on every machine, in every process
    assert len({derive_seed(s, e, i) for s in range(9) for e in range(9) for i in range(9)}) == 9**3
    assert derive_seed(1, 23) != derive_seed(12, 3)


# ---- samplers: groups that are used up begin in a new order ----

SAMPLERS = {"RandomSampler": {}, "RandomDomainSampler": {"batch_size": 6}}
SAMPLERS["RandomClassSampler"] = {"batch_size": 6, "n_ins": 3}


@pytest.fixture
def order():
    """A function that returns the order of 63 images: three of class 0 and domain 0, 60 of class 1 and domain 1."""
    source = [Datum(str(number), int(number > 2), domain=int(number > 2)) for number in range(63)]

    def call(name: str, seed: int = 1, epoch: int = 0) -> list[int]:
        sampler = build_sampler(name, config(SEED=seed), source, **SAMPLERS[name])
        sampler.epoch = epoch
        return list(sampler)

    return call


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_order_depends_on_the_seed_and_the_epoch_alone(order, name):
    assert order(name) == order(name)
    assert len({tuple(order(name, seed, epoch)) for seed in (1, 2, 3) for epoch in (0, 1, 2)}) == 9


def test_the_random_sampler_gives_one_shuffle_of_all_images(order):
    expected = list(range(63))
    random.Random(derive_seed(7, 2, "RandomSampler")).shuffle(expected)
    assert order("RandomSampler", seed=7, epoch=2) == expected


@pytest.mark.parametrize("name", ["RandomDomainSampler", "RandomClassSampler"])
def test_a_group_that_is_used_up_begins_in_a_new_order(order, name):
    """Each of the ten batches takes all three images of the small group."""
    indices = order(name)
    assert len(indices) == 60
    passes = [tuple(index for index in indices[start : start + 6] if index < 3) for start in range(0, 60, 6)]
    assert all(sorted(one) == [0, 1, 2] for one in passes)
    assert len(set(passes)) > 3
    large = [index for index in indices if index > 2]
    assert len(set(large)) == 30  # no image twice before all have come


@pytest.mark.parametrize("name", ["RandomDomainSampler", "RandomClassSampler"])
def test_the_groups_of_a_batch_are_random(name):
    """Of four groups, each batch takes one: not always the same one, and not in turn."""
    source = [Datum(str(number), number % 4, domain=number % 4) for number in range(80)]
    values = {"n_domain": 1} if name == "RandomDomainSampler" else {"n_ins": 4}
    sampler = build_sampler(name, config(SEED=1), source, batch_size=4, **values)
    sampler.epoch = 0
    groups = [index % 4 for index in sampler][::4]
    assert set(groups) == {0, 1, 2, 3}
    assert groups != (groups[:4] * 5)


def test_groups_that_cannot_fill_a_batch_are_refused(images):
    for name, values in (("RandomClassSampler", {"n_ins": 3}), ("RandomDomainSampler", {"n_domain": 4})):
        with pytest.raises(UserError, match=name):
            build_sampler(name, config(SEED=1), images, batch_size=4, **values)
