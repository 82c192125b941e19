"""Synthetic road scenes in KITTI's layout, for trying out and testing without any download."""

from .dataset import SceneSetConfig, write_scene_set
from .scene import render_scene

__all__ = ["SceneSetConfig", "render_scene", "write_scene_set"]
