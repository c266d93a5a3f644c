"""Every config key and its default. A trainer adds its node under TRAINER (see ``TrainerBase.extend_cfg``)."""

from yacs.config import CfgNode as CN

# Keys that this package does not read. Third-party code may read Dassl's; earlier commands set TRAIN.CUDA_GRAPH.
UNUSED_KEYS = (
    *("DATASET.ALL_AS_UNLABELED", "DATASET.CIFAR_C_LEVEL", "DATASET.CIFAR_C_TYPE", "DATASET.NUM_LABELED"),
    *("DATASET.STL10_FOLD", "DATASET.VAL_PERCENT", "MODEL.HEAD.ACTIVATION", "MODEL.HEAD.BN", "MODEL.HEAD.DROPOUT"),
    *("MODEL.HEAD.HIDDEN_LAYERS", "MODEL.HEAD.NAME", "TRAIN.CUDA_GRAPH"),
)

# Keys that take a text or a list of texts. All other keys keep the type of their default.
TEXT_OR_LIST_KEYS = ("DATASET.TEMPLATE",)


def get_cfg_default() -> CN:
    """Return a new config with the default of every key but the trainers' own. Keys of Dassl keep Dassl's defaults."""
    cfg = CN()
    cfg.VERSION = 1
    cfg.OUTPUT_DIR = "./output"  # log.txt, result.json, checkpoints, tensorboard
    cfg.RESUME = ""  # folder of the run to resume; ignored, like "", where OUTPUT_DIR holds checkpoints
    cfg.FORCE_RESUME = False  # True: resume from checkpoints that were made with other settings
    cfg.PROTOCOL = "validation"  # few-shot images on which hyper-parameters are chosen; or none: those of the papers
    cfg.SEED = -1  # negative: train.py draws a seed and logs it
    cfg.USE_CUDA = True  # if there is a GPU
    cfg.VERBOSE = True

    cfg.INPUT = _input_node()
    cfg.DATASET = _dataset_node()
    cfg.DATALOADER = _dataloader_node()
    cfg.FEATURES = _features_node()
    cfg.OPTIM = _optim_node()

    cfg.MODEL = CN()
    cfg.MODEL.INIT_WEIGHTS = ""  # checkpoint file with the initial values of the trained parameters
    cfg.MODEL.BACKBONE = CN()
    cfg.MODEL.BACKBONE.NAME = ""
    cfg.MODEL.BACKBONE.WEIGHTS = ""  # local file; empty: the weights that belong to NAME
    cfg.MODEL.BACKBONE.PRETRAINED = True
    # Activations of the text encoder that a step keeps for its backward pass; it recomputes the others. The default
    # holds those of ImageNet's 1,000 classes (4,300 tokens, 270 kB each).
    cfg.MODEL.BACKBONE.ACTIVATIONS_GB = 1.2
    cfg.MODEL.HEAD = CN({"NAME": "", "HIDDEN_LAYERS": (), "ACTIVATION": "relu", "BN": True, "DROPOUT": 0.0})

    cfg.TRAIN = CN()
    cfg.TRAIN.CHECKPOINT_FREQ = 0  # epochs between checkpoints; 0: one after the last epoch only
    cfg.TRAIN.KEEP_CHECKPOINTS = 0  # number of the newest checkpoints that stay, beside the best one; 0: all
    # Minutes after the last checkpoint when an epoch's end saves one, which the next replaces: a kill costs no more.
    cfg.TRAIN.CHECKPOINT_MINUTES = 5.0  # 0: never
    cfg.TRAIN.PRINT_FREQ = 10  # batches between log lines
    cfg.TRAIN.LOGGERS = ("tensorboard",)  # where metrics go: tensorboard, csv, wandb (dassl/engine/loggers.py)
    cfg.TRAIN.CUDA_GRAPH = False
    cfg.TRAIN.COUNT_ITER = "train_x"  # loader whose length is that of an epoch

    cfg.TEST = CN()
    cfg.TEST.EVALUATOR = "Classification"
    cfg.TEST.PER_CLASS_RESULT = False
    cfg.TEST.COMPUTE_CMAT = False  # confusion matrix, rows normalised, to cmat.pt
    cfg.TEST.NO_TEST = False
    cfg.TEST.SPLIT = "test"  # or val
    cfg.TEST.FINAL_MODEL = "last_step"  # or best_val
    cfg.TEST.LOGITS_GB = 1.0  # CoCoOp: memory for class features, which differ between images; about what CLIP takes

    cfg.TRAINER = CN({"NAME": ""})
    return cfg


def fill_defaults(cfg: CN) -> CN:
    """Return ``cfg`` if it has every key of ``get_cfg_default``, else a copy with the missing keys added.

    The copy is frozen if ``cfg`` is.
    """
    complete = cfg.clone()
    complete.defrost()
    _fill_node(complete, get_cfg_default())
    if cfg.is_frozen():
        complete.freeze()
    return cfg if complete == cfg else complete


def _fill_node(cfg: CN, defaults: CN) -> None:
    """Add to ``cfg``, in place, the keys and values of ``defaults`` that it does not have, in all nodes."""
    for key, value in defaults.items():
        if key not in cfg:
            cfg[key] = value
        elif isinstance(value, CN):
            _fill_node(cfg[key], value)


def _input_node() -> CN:
    """Return the keys below INPUT: the size and the transforms of images."""
    node = CN()
    node.SIZE = (224, 224)
    node.INTERPOLATION = "bilinear"  # or bicubic, nearest
    node.RESIZE = "crop"  # of test images: the smaller edge to SIZE, then the centre; or squash: both edges to SIZE
    node.TRANSFORMS = ()  # names in dassl/data/transforms/transforms.py
    node.NO_TRANSFORM = False
    # Value that is white in images of more than 8 bits a channel. 0: the highest of the type; 255: as the original,
    # which clips. -1: that of the run to resume or evaluate (255 if it is older than this key), else 0.
    node.WHITE_LEVEL = -1
    # exif: images are turned upright by their EXIF tag; stored: not, as in the original. Empty: as in the run to resume
    # or evaluate (stored if it is older than this key), else exif for ImageFolder and Captions, stored for the others.
    node.ORIENTATION = ""
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
    """Return the keys below DATASET: the data set, its files and its splits."""
    node = CN()
    node.ROOT = "./data"
    node.NAME = ""
    node.SOURCE_DOMAINS = ()
    node.TARGET_DOMAINS = ()
    node.NUM_LABELED = -1
    node.NUM_SHOTS = -1  # training images of each class; below 1: all of them
    # JSON file with exactly the images to train on, in the form of split_fewshot/*.json; empty: NUM_SHOTS are drawn.
    node.FEWSHOT_FILE = ""
    node.SUBSAMPLE_CLASSES = "all"  # or base, new: the first or second half of the classes
    node.BASE_CLASSES = ""  # text file with the names of the base classes, one a line; empty: the first half
    # Zero-shot prompt for the class names; a list of prompts is an ensemble. train.py has another default for text
    # encoders of another language.
    node.TEMPLATE = "a photo of a {}."
    node.DESCRIPTIONS = ""  # JSON file, class name -> list of sentences, which replace TEMPLATE
    # For a data set without validation images, as ImageNet. True: validate on test images, as the original CoOp does,
    # so that best_val selects on test images. False: validate on training images that are not among the shots.
    node.VAL_IS_TEST = False
    node.VAL_PERCENT = 0.1
    node.SKIP_BAD_IMAGES = False  # True: leave out images that cannot be read, also from results
    node.FOLDER = ""  # ImageFolder, Captions: folder of the images below ROOT; empty: ROOT itself
    # ImageFolder: table below FOLDER with the columns image, class and, optionally, split; empty: class folders.
    node.CSV = ""
    node.IMAGE_COLUMN = ""  # in CSV or CAPTIONS: column of the images' paths; empty: image, file_name, path, …
    node.CAPTION_COLUMN = ""  # in CAPTIONS: column of the captions; empty: caption, title, text, comment, …
    node.CLASSNAMES = ""  # ImageFolder: file below FOLDER with lines "<folder> <class name>"; empty: the folders' names
    node.TEST_PERCENT = 0.5  # ImageFolder, Captions: share (of each class) for testing, where the data has no split
    node.FOLLOW_LINKS = False  # True: follow links among the images out of ROOT and of the data set's folder
    # Features: file of features in place of images (.npz, .safetensors), or folder of such files, seen from the working
    # directory; its form is that of datasets/feature_file.py
    node.FEATURES = ""
    node.CAPTIONS = "captions.json"  # Captions: file below FOLDER: JSON (lists, lines, COCO's, Karpathy's), or a table
    node.CAPTIONS_VAL = ""  # with CAPTIONS_TEST: the files of the validation and the test split
    node.CAPTIONS_TEST = ""
    node.STL10_FOLD = -1
    node.CIFAR_C_TYPE = ""
    node.CIFAR_C_LEVEL = 1
    node.ALL_AS_UNLABELED = False
    return node


def _dataloader_node() -> CN:
    """Return the keys below DATALOADER: workers, samplers and batch sizes."""
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
    """Return the keys below FEATURES: the cache of image features, for methods whose image encoder is frozen."""
    node = CN()
    node.ENABLED = True  # False: encode each image whenever it is needed; the results are the same
    node.CACHE_DIR = ""  # empty: coop-dassl in the user's cache folder
    node.MAX_GB = 20.0  # the least recently used features beyond it are removed; holds about 10 million of ViT-B/16
    node.VIEWS = 0  # augmented views of each training image, used in turn; 0: a new view in every epoch, as in CoOp
    node.PREC = ""  # bf16: faster and less exact, if the processor supports it; empty: the trainer's precision
    return node


def _optim_node() -> CN:
    """Return the keys below OPTIM: the optimizer and the schedule of its learning rate."""
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
    node.WARMUP_RECOUNT = True  # True: the schedule starts after the warm-up; False: with it
    return node
