"""The former place of what is now in coco_file.py and own_data.py."""

from .coco_file import read_coco_json, require_image_dir
from .own_data import register_coco_json

__all__ = ["read_coco_json", "register_coco_json", "require_image_dir"]
