"""Every float key takes an integer, from yaml and from the command line."""

import pytest

from aid_d2.config import default_config, load_config
from detectron2.config import CfgNode, get_cfg


def leaves(cfg, prefix=""):
    result = {}
    for key, value in cfg.items():
        inner = isinstance(value, CfgNode)
        result.update(leaves(value, f"{prefix}{key}.") if inner else {prefix + key: value})
    return result


def float_keys():
    """The float keys that aid_d2 adds, and some of Detectron2's."""
    ours = leaves(default_config())
    added = [k for k in ours if k not in leaves(get_cfg()) and type(ours[k]) is float]
    return [*added, "SOLVER.BASE_LR", "MODEL.ROI_HEADS.SCORE_THRESH_TEST"]


def test_the_keys_are_found():
    assert {"DISTILL.WEIGHT", "DISTILL.AID.ALPHA"} <= set(float_keys())


def value_of(cfg, key):
    return leaves(cfg)[key]


@pytest.mark.parametrize("key", float_keys())
@pytest.mark.parametrize("value", ["0", "2"])
def test_an_integer_is_taken(tmp_path, key, value):
    empty = tmp_path / "empty.yaml"
    empty.write_text("VERSION: 2")
    *nodes, name = key.split(".")
    text = "VERSION: 2\n"
    for depth, node in enumerate(nodes):
        text += "  " * depth + f"{node}:\n"
    path = tmp_path / "own.yaml"
    path.write_text(text + "  " * len(nodes) + f"{name}: {value}\n")
    for cfg in (load_config(str(path)), load_config(str(empty), [key, value])):
        found = value_of(cfg, key)
        assert type(found) is float and found == float(value)


def test_other_types_are_still_refused(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("VERSION: 2\nDISTILL: {WEIGHT: true}\n")
    with pytest.raises(ValueError, match="Type mismatch.*DISTILL.WEIGHT"):
        load_config(str(path))
    for opts in (["DISTILL.WEIGHT", "True"], ["SOLVER.MAX_ITER", "0.5"]):
        with pytest.raises(ValueError, match="Type mismatch"):
            default_config().merge_from_list(opts)
