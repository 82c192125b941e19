"""Train or evaluate a plain or a distilled detector, with Detectron2's usual command line."""

import logging
import os

from aid_d2 import compat, load_config
from aid_d2.config import use_cpu_without_gpu
from aid_d2.data import IgnoreRegionMapper, build_mixed_train_loader, register_coco_json
from aid_d2.evaluation import KITTIEvaluator
from aid_d2.modeling import check_classes, mask_ignore_regions, train_fast
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators, verify_results
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, JSONWriter
from detectron2.utils.logger import setup_logger


class Trainer(DefaultTrainer):
    """`DefaultTrainer` with the COCO evaluator, and KITTI's own metrics where they apply."""

    def __init__(self, cfg):
        for name in cfg.DATASETS.TEST:
            DatasetCatalog.get(name)  # what is wrong with it is told now, not after training
        super().__init__(cfg)
        data = cfg.DATASETS
        check_classes(self.model, (*data.TRAIN, *data.UNLABELED, *data.TEST))

    # v0.6 leaves the optimizer out of its checkpoints; later versions do as follows.
    def state_dict(self):
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        if "_trainer" in state_dict:
            self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_model(cls, cfg):
        model = super().build_model(cfg)
        if cfg.INPUT.MASK_IGNORE_REGIONS:
            mask_ignore_regions(model)
        train_fast(cfg, model)
        return model

    @classmethod
    def build_train_loader(cls, cfg):
        mapper = IgnoreRegionMapper(cfg, True) if cfg.INPUT.MASK_IGNORE_REGIONS else None
        if cfg.DATASETS.UNLABELED:
            return build_mixed_train_loader(cfg, mapper)
        return build_detection_train_loader(cfg, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        coco = COCOEvaluator(dataset_name, output_dir=os.path.join(cfg.OUTPUT_DIR, "inference"))
        if MetadataCatalog.get(dataset_name).get("evaluator_type") == "kitti":
            return DatasetEvaluators([coco, KITTIEvaluator(dataset_name)])
        return coco


def setup(args):
    """The config of a command line, with logging set up and own data sets registered."""
    cfg = load_config(args.config_file, args.opts)
    no_gpu = use_cpu_without_gpu(cfg)
    register_coco_json(cfg.DATASETS.COCO_JSON)
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="aid_d2")
    logger = logging.getLogger("aid_d2")
    for repair in compat.REPAIRS:
        logger.info(repair)
    if no_gpu:
        logger.warning("No GPU: MODEL.DEVICE is cpu.")
    return cfg


def main(args):
    cfg = setup(args)
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()

    student_cfg = cfg.clone()
    student_cfg.defrost()
    student_cfg.DISTILL.ENABLED = False
    model = Trainer.build_model(student_cfg)
    DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(
        cfg.MODEL.WEIGHTS, resume=args.resume
    )
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
        write_metrics(results, os.path.join(cfg.OUTPUT_DIR, "inference", "metrics.json"))
    return results


def write_metrics(results, path):
    """As training writes them to OUTPUT_DIR/metrics.json: a line of json."""
    with EventStorage() as storage:
        storage.put_scalars(**flatten_results_dict(results))
        writer = JSONWriter(path)
        writer.write()
        writer.close()


def run():
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


if __name__ == "__main__":
    run()
