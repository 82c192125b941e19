"""Detectron2's usual command line for plain and distilled detectors."""

import argparse
import logging
import os

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, JSONWriter
from detectron2.utils.logger import setup_logger

from .. import compat
from ..config import load_config, plain_student, use_cpu_without_gpu
from ..data import register_own_data
from .trainer import Trainer


def run() -> None:
    """Parse the command line and launch :func:`main` on the asked number of GPUs."""
    args = default_argument_parser().parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def main(args: argparse.Namespace):
    """Train, or with `--eval-only` evaluate, what the command line says.

    Returns:
        the metrics of the last evaluation.
    """
    cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg, resume=args.resume)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def setup(args: argparse.Namespace) -> CfgNode:
    """The config of a command line, with logging set up and own data sets registered."""
    cfg = load_config(args.config_file, args.opts)
    no_gpu = use_cpu_without_gpu(cfg)
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="aid_d2")
    register_own_data(cfg)
    logger = logging.getLogger("aid_d2")
    for repair in compat.REPAIRS:
        logger.info(repair)
    if no_gpu:
        logger.warning("No GPU: MODEL.DEVICE is cpu.")
    return cfg


def evaluate(cfg: CfgNode, resume: bool = False):
    """Evaluate MODEL.WEIGHTS, of a distilled detector the student alone; no teacher is needed.

    Args:
        resume: evaluate the last checkpoint of OUTPUT_DIR instead, if there is one.
    """
    model = Trainer.build_model(plain_student(cfg))
    DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(
        cfg.MODEL.WEIGHTS, resume=resume
    )
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
        _write_metrics(results, os.path.join(cfg.OUTPUT_DIR, "inference", "metrics.json"))
    return results


def _write_metrics(results: dict, path: str) -> None:
    """As training writes them to OUTPUT_DIR/metrics.json: a line of json."""
    with EventStorage() as storage:
        storage.put_scalars(**flatten_results_dict(results))
        writer = JSONWriter(path)
        writer.write()
        writer.close()
