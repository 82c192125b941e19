"""Mini-batches of labeled images and of images that a teacher labeled (SAD, BMVC 2019)."""

from collections.abc import Callable, Iterable, Iterator

from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.utils import comm

from ..structures import PSEUDO_LABELED


class MixedLoader:
    """Joins the batches of two endless loaders, those of the first one in front."""

    def __init__(self, labeled: Iterable[list[dict]], unlabeled: Iterable[list[dict]]):
        self.labeled = labeled
        self.unlabeled = unlabeled

    def __iter__(self) -> Iterator[list[dict]]:
        return (a + b for a, b in zip(self.labeled, self.unlabeled))


def build_mixed_train_loader(cfg: CfgNode, mapper: Callable | None = None) -> MixedLoader:
    """Training batches of SOLVER.IMS_PER_BATCH images, the share DATALOADER.UNLABELED_RATIO of them
    from DATASETS.UNLABELED and marked as PSEUDO_LABELED, the others from DATASETS.TRAIN.

    SAD lets labeled and unlabeled mini-batches alternate; here each is mixed, so that every step
    sees the ground truth.

    Raises:
        ValueError: the ratio does not divide the batch of a GPU into two parts, or the data sets
            have different classes.
    """
    total, gpus = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    per_gpu = total * cfg.DATALOADER.UNLABELED_RATIO / gpus
    unlabeled = round(per_gpu) * gpus
    if abs(per_gpu - round(per_gpu)) > 1e-6 or not 0 < unlabeled < total:
        raise ValueError(
            f"DATALOADER.UNLABELED_RATIO {cfg.DATALOADER.UNLABELED_RATIO} of SOLVER.IMS_PER_BATCH "
            f"{total} on {gpus} GPU(s) is {per_gpu:g} images each; it has to be a whole number, "
            "and leave room for labeled ones."
        )
    dataset = get_detection_dataset_dicts(
        cfg.DATASETS.UNLABELED, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    dataset = [{**record, PSEUDO_LABELED: True} for record in dataset]
    loader = MixedLoader(
        build_detection_train_loader(_with_batch(cfg, total - unlabeled), mapper=mapper),
        build_detection_train_loader(_with_batch(cfg, unlabeled), mapper=mapper, dataset=dataset),
    )
    classes = {x: MetadataCatalog.get(x).get("thing_classes") for x in cfg.DATASETS.TRAIN}
    for name in cfg.DATASETS.UNLABELED:
        found = MetadataCatalog.get(name).get("thing_classes")
        if found not in classes.values():
            raise ValueError(
                f"The data set {name!r} of DATASETS.UNLABELED has the classes {found}, and those "
                f"of DATASETS.TRAIN are {classes}. Label it with a teacher of the same classes in "
                "the same order."
            )
    return loader


def _with_batch(cfg: CfgNode, images: int) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.IMS_PER_BATCH = images
    return cfg
