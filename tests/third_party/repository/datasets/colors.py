import os
import pickle

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.utils import listdir_nohidden, mkdir_if_missing


@DATASET_REGISTRY.register()
class Colors(DatasetBase):
    dataset_dir = "colors"

    def __init__(self, cfg):
        root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.dataset_dir = os.path.join(root, self.dataset_dir)
        self.image_dir = os.path.join(self.dataset_dir, "images")
        self.split_fewshot_dir = os.path.join(self.dataset_dir, "split_fewshot")
        mkdir_if_missing(self.split_fewshot_dir)
        train, val, test = self.read_data()

        num_shots = cfg.DATASET.NUM_SHOTS
        if num_shots >= 1:
            cache = os.path.join(self.split_fewshot_dir, f"shot_{num_shots}-seed_{cfg.SEED}.pkl")
            if os.path.exists(cache):
                print(f"Loading preprocessed few-shot data from {cache}")
                with open(cache, "rb") as file:
                    data = pickle.load(file)
                train, val = data["train"], data["val"]
            else:
                train = self.generate_fewshot_dataset(train, num_shots=num_shots)
                val = self.generate_fewshot_dataset(val, num_shots=min(num_shots, 4))
                with open(cache, "wb") as file:
                    pickle.dump({"train": train, "val": val}, file, protocol=pickle.HIGHEST_PROTOCOL)
        super().__init__(train_x=train, val=val, test=test)

    def read_data(self):
        """Return the splits: of each class, half the images for training, a quarter each for validation and testing."""
        train, val, test = [], [], []
        for label, name in enumerate(listdir_nohidden(self.image_dir, sort=True)):
            files = listdir_nohidden(os.path.join(self.image_dir, name), sort=True)
            for i, file in enumerate(files):
                impath = os.path.join(self.image_dir, name, file)
                item = Datum(impath=impath, label=int(label), domain=0, classname=name)
                (train, train, val, test)[4 * i // len(files)].append(item)
        return train, val, test
