"""Every key and its default. A trainer adds a node of its own under TRAINER (see ``TrainerBase.extend_cfg``)."""

from yacs.config import CfgNode as CN

# Nothing here reads these. Dassl has them, so code of the field may; TRAIN.CUDA_GRAPH stands in earlier commands.
UNUSED_KEYS = ("DATASET.ALL_AS_UNLABELED", "DATASET.CIFAR_C_LEVEL", "DATASET.CIFAR_C_TYPE", "DATASET.NUM_LABELED")
UNUSED_KEYS += (
    "DATASET.STL10_FOLD",
    "DATASET.VAL_PERCENT",
    "MODEL.HEAD.ACTIVATION",
    "MODEL.HEAD.BN",
    "MODEL.HEAD.DROPOUT",
)
UNUSED_KEYS += ("MODEL.HEAD.HIDDEN_LAYERS", "MODEL.HEAD.NAME", "TRAIN.CUDA_GRAPH")


def get_cfg_default() -> CN:
    """A fresh config with the defaults below."""
    cfg = CN()
    cfg.VERSION = 1
    cfg.OUTPUT_DIR = "./output"  # log.txt, result.json, checkpoints, tensorboard
    cfg.RESUME = ""  # a run's folder; empty, or once OUTPUT_DIR holds checkpoints: OUTPUT_DIR
    cfg.FORCE_RESUME = False  # True: go on from checkpoints that were made with other settings
    cfg.SEED = -1  # 0 is a seed; negative: train.py draws one and logs it
    cfg.USE_CUDA = True  # where there is one
    cfg.VERBOSE = True

    cfg.INPUT = _input_node()
    cfg.DATASET = _dataset_node()
    cfg.DATALOADER = _dataloader_node()
    cfg.FEATURES = _features_node()
    cfg.OPTIM = _optim_node()

    cfg.MODEL = CN()
    cfg.MODEL.INIT_WEIGHTS = ""  # a checkpoint to start the trained parameters from
    cfg.MODEL.BACKBONE = CN()
    cfg.MODEL.BACKBONE.NAME = ""
    cfg.MODEL.BACKBONE.WEIGHTS = ""  # a local file; empty: the weights that belong to NAME
    cfg.MODEL.BACKBONE.PRETRAINED = True
    cfg.MODEL.BACKBONE.ACTIVATIONS_GB = 1.2  # kept of a step for its backward pass; more is computed a second time
    cfg.MODEL.HEAD = CN({"NAME": "", "HIDDEN_LAYERS": (), "ACTIVATION": "relu", "BN": True, "DROPOUT": 0.0})

    cfg.TRAIN = CN()
    cfg.TRAIN.CHECKPOINT_FREQ = 0  # epochs; 0: after the last epoch only
    cfg.TRAIN.KEEP_CHECKPOINTS = 0  # of CHECKPOINT_FREQ's, the last ones; 0: all. The best one stays in any case
    cfg.TRAIN.CHECKPOINT_MINUTES = 5.0  # without any, an epoch's end leaves one that the next replaces; 0: never
    cfg.TRAIN.PRINT_FREQ = 10  # batches
    cfg.TRAIN.CUDA_GRAPH = False
    cfg.TRAIN.COUNT_ITER = "train_x"  # the loader that sets the length of an epoch

    cfg.TEST = CN()
    cfg.TEST.EVALUATOR = "Classification"
    cfg.TEST.PER_CLASS_RESULT = False
    cfg.TEST.COMPUTE_CMAT = False  # confusion matrix, rows normalised, to cmat.pt
    cfg.TEST.NO_TEST = False
    cfg.TEST.SPLIT = "test"  # or val
    cfg.TEST.FINAL_MODEL = "last_step"  # or best_val
    cfg.TEST.LOGITS_GB = 1.0  # CoCoOp: of class features, which differ from image to image, at a time

    cfg.TRAINER = CN()
    cfg.TRAINER.NAME = ""
    return cfg


def fill_defaults(cfg: CN) -> CN:
    """Return ``cfg``; where it lacks keys, a copy that has them, frozen if ``cfg`` is."""
    complete = cfg.clone()
    complete.defrost()
    _fill_node(complete, get_cfg_default())
    if cfg.is_frozen():
        complete.freeze()
    return cfg if complete == cfg else complete


def _fill_node(cfg: CN, defaults: CN) -> None:
    for key, value in defaults.items():
        if key not in cfg:
            cfg[key] = value
        elif isinstance(value, CN):
            _fill_node(cfg[key], value)


def _input_node() -> CN:
    node = CN()
    node.SIZE = (224, 224)
    node.INTERPOLATION = "bilinear"  # or bicubic, nearest
    node.RESIZE = "crop"  # of test images: the smaller edge to SIZE, then the centre; or squash: both edges to SIZE
    node.TRANSFORMS = ()  # dassl/data/transforms/transforms.py lists them
    node.NO_TRANSFORM = False
    node.PIXEL_MEAN = [0.485, 0.456, 0.406]  # ImageNet's
    node.PIXEL_STD = [0.229, 0.224, 0.225]
    node.CROP_PADDING = 4  # random_crop
    node.RRCROP_SCALE = (0.08, 1.0)  # random_resized_crop
    node.CUTOUT_N = 1
    node.CUTOUT_LEN = 16
    node.GN_MEAN = 0.0  # gaussian_noise
    node.GN_STD = 0.15
    node.RANDAUGMENT_N = 2
    node.RANDAUGMENT_M = 10
    node.COLORJITTER_B = 0.4
    node.COLORJITTER_C = 0.4
    node.COLORJITTER_S = 0.4
    node.COLORJITTER_H = 0.1
    node.RGS_P = 0.2  # randomgrayscale
    node.GB_P = 0.5  # gaussian_blur
    node.GB_K = 21
    return node


def _dataset_node() -> CN:
    node = CN()
    node.ROOT = "./data"
    node.NAME = ""
    node.SOURCE_DOMAINS = ()
    node.TARGET_DOMAINS = ()
    node.NUM_LABELED = -1
    node.NUM_SHOTS = -1  # images a class; below 1: all of them
    node.SUBSAMPLE_CLASSES = "all"  # or base, new: the first or second half of the classes
    node.TEMPLATE = "a photo of a {}."  # what zero-shot says of a class of this dataset
    # True: where a data set has no validation images, as ImageNet, the test images are, as in the original: best_val
    # then selects on test images. False: training images that the few shots leave over.
    node.VAL_IS_TEST = False
    node.VAL_PERCENT = 0.1
    node.SKIP_BAD_IMAGES = False  # True: results over fewer images than a split has, where some cannot be read
    node.FOLDER = ""  # ImageFolder, Captions: the folder below ROOT that holds the images; empty: ROOT itself
    node.CLASSNAMES = ""  # ImageFolder: a file below FOLDER with lines "<folder> <class name>"; empty: folders' names
    node.TEST_PERCENT = 0.5  # ImageFolder, Captions: the part (of each class) for testing, where the data does not tell
    node.FOLLOW_LINKS = False  # True: also links among the images that lead out of ROOT and of the data set's folder
    node.CAPTIONS = "captions.json"  # Captions: a file below FOLDER: JSON, or a table with a header
    node.CAPTIONS_VAL = ""  # with CAPTIONS_TEST: files of their own for validation and testing
    node.CAPTIONS_TEST = ""
    node.STL10_FOLD = -1
    node.CIFAR_C_TYPE = ""
    node.CIFAR_C_LEVEL = 1
    node.ALL_AS_UNLABELED = False
    return node


def _dataloader_node() -> CN:
    node = CN()
    node.NUM_WORKERS = 4
    node.K_TRANSFORMS = 1  # augmented views of each training image
    node.RETURN_IMG0 = False  # also the image without augmentation, as img0
    node.TRAIN_X = CN()
    node.TRAIN_X.SAMPLER = "RandomSampler"
    node.TRAIN_X.BATCH_SIZE = 32
    node.TRAIN_X.N_DOMAIN = 0  # RandomDomainSampler: domains a batch
    node.TRAIN_X.N_INS = 16  # RandomClassSampler: images a class
    node.TRAIN_U = node.TRAIN_X.clone()
    node.TRAIN_U.SAME_AS_X = True
    node.TEST = CN()
    node.TEST.SAMPLER = "SequentialSampler"
    node.TEST.BATCH_SIZE = 32
    return node


def _features_node() -> CN:
    """For methods that never change the image encoder: its features are computed once and kept."""
    node = CN()
    node.ENABLED = True  # False: nothing is kept, each image is encoded whenever it is needed; the results are the same
    node.CACHE_DIR = ""  # empty: coop-dassl in the user's cache folder
    node.MAX_GB = 20.0  # the least recently used are removed beyond that
    node.VIEWS = 0  # random draws a training image, taken in turn; 0: a new one in every epoch, as in the original
    node.PREC = ""  # bf16: faster, not as exact, where the processor has it; empty: the trainer's precision
    return node


def _optim_node() -> CN:
    node = CN()
    node.NAME = "adam"
    node.LR = 0.0003
    node.WEIGHT_DECAY = 5e-4
    node.MOMENTUM = 0.9
    node.SGD_DAMPNING = 0
    node.SGD_NESTEROV = False
    node.RMSPROP_ALPHA = 0.99
    node.ADAM_BETA1 = 0.9
    node.ADAM_BETA2 = 0.999
    node.STAGED_LR = False  # NEW_LAYERS at LR, the other layers at LR * BASE_LR_MULT
    node.NEW_LAYERS = ()
    node.BASE_LR_MULT = 0.1
    node.LR_SCHEDULER = "single_step"  # or multi_step, cosine
    node.STEPSIZE = (-1,)  # epochs; -1: MAX_EPOCH
    node.GAMMA = 0.1
    node.MAX_EPOCH = 10
    node.WARMUP_EPOCH = -1
    node.WARMUP_TYPE = "linear"  # or constant
    node.WARMUP_CONS_LR = 1e-5
    node.WARMUP_MIN_LR = 1e-5
    node.WARMUP_RECOUNT = True  # the schedule starts after the warm-up, not under it
    return node
