"""What a distilled training tells of itself, beside its losses."""

import logging
import math

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..modeling.modes import unwrapped
from ..modeling.teacher import load_teacher_config, teacher_of

logger = logging.getLogger(__name__)

# Steps after which the log tells the share of distillation, and what is usual.
TOLD_AFTER = 20
USUAL_SHARE = 0.05, 0.95


class ReportShare(HookBase):
    """Writes `distill/share`, that of the distillation losses in the total loss of a step.

    Once, after TOLD_AFTER steps or the warm-up, it is told in the log.
    """

    def before_train(self):
        model = unwrapped(self.trainer.model)
        self._prefixes = tuple(f"loss_{name}_" for name in model.distiller)
        self._told_at = max(self.trainer.start_iter + TOLD_AFTER, model.warmup_iters) - 1

    def after_step(self):
        if not comm.is_main_process():
            return
        storage = self.trainer.storage
        latest = {name: value for name, (value, _) in storage.latest().items()}
        distilled = sum(v for name, v in latest.items() if name.startswith(self._prefixes))
        total = latest.get("total_loss")
        if total is None:  # a trainer need not write each step's
            return
        share = distilled / total if total else math.nan
        storage.put_scalar("distill/share", share)
        if self.trainer.iter == self._told_at:
            self._tell(share)

    def _tell(self, share: float) -> None:
        logger.info(f"Distillation makes {share:.0%} of the total loss.")
        if not USUAL_SHARE[0] <= share <= USUAL_SHARE[1]:
            logger.warning(
                f"That is {'little' if share < 0.5 else 'much'}: look at DISTILL.WEIGHT and the "
                "weights of the methods."
            )


class EvaluateTeacher(HookBase):
    """Evaluates the teacher before the first step, on DATASETS.TEST; writes `teacher/AP`, or
    `teacher/NAME/AP` for each of several data sets.
    """

    def before_train(self):
        trainer = self.trainer
        cfg = load_teacher_config(trainer.cfg)
        cfg.DATASETS.TEST = trainer.cfg.DATASETS.TEST
        cfg.OUTPUT_DIR = trainer.cfg.OUTPUT_DIR
        found = trainer.test(cfg, teacher_of(trainer.model).model)
        results = {"teacher": found}
        if len(cfg.DATASETS.TEST) > 1:
            results = {f"teacher/{name}": x for name, x in found.items()}
        for name, result in results.items():
            if "bbox" in result:
                logger.info(f"{name}: AP {result['bbox']['AP']:.2f}")
                trainer.storage.put_scalar(f"{name}/AP", result["bbox"]["AP"], smoothing_hint=False)
