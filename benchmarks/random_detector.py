r"""Write a detector of random weights, to be exported and timed before anything is trained.

    python benchmarks/random_detector.py --config-file kitti/gfl_R_101.yaml \
        --output timing/teacher MODEL.GFL.SCORE_THRESH_TEST 0.0

Batch norms get the statistics of noise, so that maps stay of usual size. With a threshold of 0
the NMS sees as many candidates as it ever will.
"""

import argparse
from pathlib import Path

import torch

from aid_d2.config import load_config, plain_student
from detectron2.modeling import build_model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ... of the config")
    args = parser.parse_args()
    args.output.mkdir(parents=True)
    cfg = plain_student(load_config(args.config_file, args.opts))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.TIMM.PRETRAINED, cfg.MODEL.RESNETS.NORM = False, "BN"
    torch.manual_seed(0)
    model = build_model(cfg)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        model.backbone.train()(torch.randn(1, 3, 384, 640))
    torch.save({"model": model.state_dict()}, args.output / "model_final.pth")
    (args.output / "config.yaml").write_text(cfg.dump())


if __name__ == "__main__":
    main()
