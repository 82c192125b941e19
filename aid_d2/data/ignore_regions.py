"""A dataset mapper that hands ignore regions to the model instead of dropping them."""

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper


class IgnoreRegionMapper(DatasetMapper):
    """Detectron2's mapper, keeping `iscrowd` regions as instances of class -1 in training.

    Detectron2 leaves such regions out, so that whatever is seen in them is trained as background.
    Here a region takes part in the augmentations like any box and arrives in `instances` with
    `gt_classes == -1`; the model must leave it out of its targets and its loss. A region repeated
    for several classes arrives once. For box detection only.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        if cfg.MODEL.MASK_ON or cfg.MODEL.KEYPOINT_ON:
            raise ValueError(
                "INPUT.MASK_IGNORE_REGIONS is for box detection: ignore regions have no mask or "
                "keypoints, so turn off MODEL.MASK_ON and MODEL.KEYPOINT_ON."
            )
        return super().from_config(cfg, is_train)

    def __call__(self, dataset_dict: dict) -> dict:
        if self.is_train and "annotations" in dataset_dict:
            dataset_dict = {
                **dataset_dict,
                "annotations": _regions_as_instances(dataset_dict["annotations"]),
            }
        return super().__call__(dataset_dict)


def _regions_as_instances(annotations: list[dict]) -> list[dict]:
    objects = [a for a in annotations if not a.get("iscrowd", 0)]
    regions = {tuple(a["bbox"]): a for a in annotations if a.get("iscrowd", 0)}
    # The parent class drops whatever has `iscrowd` set.
    return objects + [{**a, "iscrowd": 0, "category_id": -1} for a in regions.values()]
