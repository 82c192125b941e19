"""Detectron2's default trainer, with what the keys of aid_d2 ask for."""

import os
import time
import weakref

import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import DefaultTrainer, SimpleTrainer
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators
from detectron2.utils import comm

from ..data import IgnoreRegionMapper, build_mixed_train_loader
from ..data.readable import NamingMapper
from ..data.registered import class_names
from ..evaluation import KITTIEvaluator
from ..modeling.backbones import warn_frozen_random
from ..modeling.checks import check_classes
from ..modeling.ignore_regions import ignoring_regions
from ..modeling.precision import compile_backbone, warn_emulated_bfloat16
from ..modeling.teacher import teacher_of
from .checkpoint import WholeCheckpointer
from .interrupt import SaveOnSignal
from .report import ReportShare

MORE_MEMORY = "Lower SOLVER.IMS_PER_BATCH, or set SOLVER.BF16 True, which halves what maps take."


class Trainer(DefaultTrainer):
    """`DefaultTrainer` with the COCO evaluator, and KITTI's own metrics where they apply.

    Attributes:
        trained: the last iteration whose step is done.
    """

    trained = -1

    def __init__(self, cfg: CfgNode):
        if cfg.SOLVER.BF16 and cfg.SOLVER.AMP.ENABLED:
            raise ValueError(
                "SOLVER.BF16 and SOLVER.AMP.ENABLED exclude each other: set one False."
            )
        warn_frozen_random(cfg)
        for name in cfg.DATASETS.TEST:
            DatasetCatalog.get(name)  # what is wrong with it is told now, not after training
        super().__init__(cfg)
        data = cfg.DATASETS
        check_classes(self.model, (*data.TRAIN, *data.UNLABELED, *data.TEST))
        if cfg.SOLVER.BF16:
            warn_emulated_bfloat16(next(self.model.parameters()).device)
            exact = self._trainer
            self._trainer = Bfloat16Trainer(exact.model, exact.data_loader, exact.optimizer)

    def build_hooks(self):
        # Before the hooks, since one of them saves with it; a proxy, as Detectron2 has it.
        self.checkpointer = WholeCheckpointer(
            self.model,
            self.cfg.OUTPUT_DIR,
            class_names=class_names(self.cfg.DATASETS.TRAIN[0]),
            trainer=weakref.proxy(self),
        )
        report = [ReportShare()] if teacher_of(self.model) else []
        return [*report, *super().build_hooks(), SaveOnSignal()]

    def run_step(self):
        """A step, whose failure names its remedy.

        Raises:
            FloatingPointError: a loss became infinite or NaN.
            MemoryError: the device has too little memory; what was trained is saved before.
        """
        try:
            super().run_step()
        except torch.OutOfMemoryError as error:
            raise MemoryError(f"{error}\n{self.save_progress()}{MORE_MEMORY}") from error
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{error}\nLower SOLVER.BASE_LR or DISTILL.WEIGHT, raise DISTILL.WARMUP_ITERS, or "
                "clip gradients by SOLVER.CLIP_GRADIENTS.ENABLED True, CLIP_TYPE norm and "
                "CLIP_VALUE 35.0."
            ) from error
        self.trained = self.iter

    def save_progress(self) -> str:
        """Save what all steps that are done have trained, and say where; in the main process."""
        done = self.trained
        if done < self.start_iter or not comm.is_main_process():
            return ""
        self.iter = done  # which the trainer's own state tells
        self.checkpointer.save(f"model_{done:07d}", iteration=done)
        return f"{self.cfg.OUTPUT_DIR} has a checkpoint of all steps so far, for --resume.\n"

    # v0.6 leaves the optimizer out of its checkpoints; later versions do as follows.
    def state_dict(self):
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        if "_trainer" in state_dict:
            state = state_dict["_trainer"]
            if scaler := getattr(self._trainer, "grad_scaler", None):  # new since, with AMP
                state = {"grad_scaler": scaler.state_dict(), **state}
            self._trainer.load_state_dict(state)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The detector, with the parts that INPUT.MASK_IGNORE_REGIONS and SOLVER ask for."""
        model = super().build_model(ignoring_regions(cfg) if cfg.INPUT.MASK_IGNORE_REGIONS else cfg)
        if cfg.SOLVER.CHANNELS_LAST:
            model.to(memory_format=torch.channels_last)
        if cfg.SOLVER.COMPILE:
            compile_backbone(model)
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """Batches of DATASETS.TRAIN, and of DATASETS.UNLABELED if there are some."""
        kind = IgnoreRegionMapper if cfg.INPUT.MASK_IGNORE_REGIONS else DatasetMapper
        mapper = NamingMapper(kind(cfg, True))
        if cfg.DATASETS.UNLABELED:
            return build_mixed_train_loader(cfg, mapper)
        return build_detection_train_loader(cfg, mapper=mapper)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """Detectron2's, whose error names an image that cannot be read."""
        mapper = NamingMapper(DatasetMapper(cfg, False))
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str):
        """COCO's metrics, and KITTI's for a data set in its layout."""
        coco = COCOEvaluator(dataset_name, output_dir=inference_dir(cfg))
        if MetadataCatalog.get(dataset_name).get("kitti_layout"):
            return DatasetEvaluators([coco, KITTIEvaluator(dataset_name)])
        return coco


def inference_dir(cfg: CfgNode) -> str:
    """Where an evaluation writes, as Detectron2's evaluators do."""
    return os.path.join(cfg.OUTPUT_DIR, "inference")


class Bfloat16Trainer(SimpleTrainer):
    """Training steps under bfloat16 autocast, on GPU or CPU; parameters stay float32.

    bfloat16 has the range of float32, so that gradients need no scaling. Detectron2's AMPTrainer is
    for float16 on a GPU.
    """

    def run_step(self):
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, torch.bfloat16):
            losses = self.model(data)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self._write_metrics(losses, data_time)
        self.optimizer.step()
