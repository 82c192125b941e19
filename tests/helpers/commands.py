"""Command lines of small trainings by the configs of KITTI."""

from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "kitti"
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MIN_SIZE_TEST": 64,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.STEPS": (),
    "DATALOADER.NUM_WORKERS": 0,
    "SEED": 7,
}


def command(config, output, data, *flags, **overrides):
    """Arguments of training a config on a data set, as DATASETS.COCO_JSON takes one."""
    options = {
        **SMALL,
        "DATASETS.COCO_JSON": [data],
        "DATASETS.TRAIN": (data[0],),
        "DATASETS.TEST": (data[0],),
        "OUTPUT_DIR": str(output),
        **overrides,
    }
    pairs = [str(x) for pair in options.items() for x in pair]
    return ["--config-file", str(CONFIGS / config), *flags, *pairs]
