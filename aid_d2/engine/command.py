"""Detectron2's usual command line for plain and distilled detectors."""

import argparse
import logging
import os

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
from ..data.registered import class_names, require_registered, require_same_classes
from ..modeling.checks import check_classes, check_teacher_on
from ..modeling.safe_pickle import TRUST
from ..modeling.teacher import teacher_of
from .checkpoint import WholeCheckpointer, check_unused, forget_run
from .report import EvaluateTeacher
from .resume import check_unchanged
from .student_config import write_student_config
from .summary import summary
from .trainer import Trainer, inference_dir


def run(args: argparse.Namespace) -> None:
    """Launch :func:`main` on the asked number of GPUs."""
    if args.trust_checkpoint:
        os.environ[TRUST] = "1"
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's arguments, and those of aid_d2."""
    parser = default_argument_parser()
    parser.add_argument(
        "--overwrite", action="store_true", help="train anew in an OUTPUT_DIR that holds a run"
    )
    parser.add_argument(
        "--trust-checkpoint", action="store_true", help="load files that could run code"
    )
    parser.add_argument(
        "--eval-teacher", action="store_true", help="evaluate the teacher before the first step"
    )
    return parser


def main(args: argparse.Namespace):
    """Train, or with `--eval-only` evaluate, what the command line says.

    Returns:
        the metrics of the last evaluation.
    """
    cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg, resume=args.resume)
    if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu":
        raise ValueError(
            "SOLVER.AMP.ENABLED trains in float16, on GPUs alone, and MODEL.DEVICE is cpu: set it "
            "False."
        )
    trainer = Trainer(cfg)
    if args.eval_teacher:
        teacher = teacher_of(trainer.model)
        if teacher is None:
            raise ValueError("--eval-teacher: nothing is distilled, so that there is no teacher.")
        check_teacher_on(cfg.DATASETS.TEST, teacher)
        trainer.register_hooks([EvaluateTeacher()])
    trainer.resume_or_load(resume=args.resume)
    logging.getLogger("aid_d2").info(summary(trainer))
    return trainer.train()


def setup(args: argparse.Namespace) -> CfgNode:
    """The config of a command line, with logging set up and own data sets registered.

    Raises:
        FileExistsError: OUTPUT_DIR holds a run that neither --resume nor --overwrite is for.
        ValueError: --resume, and a key that the checkpoint depends on has changed.
    """
    cfg = load_config(args.config_file, args.opts)
    no_gpu = use_cpu_without_gpu(cfg)
    cfg.freeze()
    if not (args.eval_only or args.resume or args.overwrite):
        check_unused(cfg.OUTPUT_DIR)
    if args.resume and not args.eval_only:
        check_unchanged(cfg)
    if args.overwrite and not (args.eval_only or args.resume) and comm.is_main_process():
        forget_run(cfg.OUTPUT_DIR)
    # An evaluation leaves the config and the log of the training as they are.
    outputs = cfg.clone()
    outputs.defrost()
    if args.eval_only:
        outputs.OUTPUT_DIR = inference_dir(cfg)
    # The config is logged once: whole, and not the file that it comes from too.
    default_setup(outputs, argparse.Namespace(**{**vars(args), "config_file": ""}))
    setup_logger(outputs.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="aid_d2")
    if comm.is_main_process() and not args.eval_only:
        write_student_config(cfg)
    register_own_data(cfg)
    require_registered((*cfg.DATASETS.TRAIN, *cfg.DATASETS.UNLABELED, *cfg.DATASETS.TEST))
    logger = logging.getLogger("aid_d2")
    for repair in compat.REPAIRS:
        logger.info(repair)
    if cfg.TEST.AUG.ENABLED:
        logger.warning("TEST.AUG.ENABLED has no effect: images are evaluated as they are.")
    if no_gpu:
        logger.warning("No GPU: MODEL.DEVICE is cpu.")
    return cfg


def evaluate(cfg: CfgNode, resume: bool = False):
    """Evaluate MODEL.WEIGHTS, of a distilled detector the student alone; no teacher is needed.

    Args:
        resume: evaluate the last checkpoint of OUTPUT_DIR instead, if there is one.

    Raises:
        ValueError: there are no weights to evaluate, or the classes of a data set are others.
    """
    model = Trainer.build_model(plain_student(cfg))
    checkpointer = WholeCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    if not cfg.MODEL.WEIGHTS and not (resume and checkpointer.has_checkpoint()):
        raise ValueError(
            "There are no weights to evaluate. Set MODEL.WEIGHTS to a trained detector, or use "
            "--resume for the last checkpoint of OUTPUT_DIR."
        )
    known = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume).get("class_names")
    for name in cfg.DATASETS.TEST:
        names = class_names(name)
        if known and names:
            require_same_classes("the checkpoint", known, name, names)
    check_classes(model, cfg.DATASETS.TEST)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
        _write_metrics(results, os.path.join(inference_dir(cfg), "metrics.json"))
    return results


def _write_metrics(results: dict, path: str) -> None:
    """As training writes them to OUTPUT_DIR/metrics.json: a line of json."""
    with EventStorage() as storage:
        storage.put_scalars(**flatten_results_dict(results))
        writer = JSONWriter(path)
        writer.write()
        writer.close()
