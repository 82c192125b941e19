"""Suite files: groups of training runs that differ in nothing but what their names say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import yaml

from aid_d2.config import DISTILLED, find_config, load_config, plain_student
from aid_d2.distillers import DISTILLER_REGISTRY
from aid_d2.distillers.build import AUTO
from detectron2.config import CfgNode

TEACHER = "teacher"
# Not of students: with the seed of its teacher one of the same network starts from the same
# weights, and finds it far easier to follow it than from weights of its own.
TEACHER_SEED = 1
_SUITE_KEYS = {"seeds", "opts", "groups", "gains"}
_GAIN_KEYS = {"of", "over"}
_GROUP_KEYS = {"teacher", "rows", "baselines", "opts"}
_TEACHER_KEYS = {"config", "opts", "weights"}
_ROW_KEYS = {"config", "opts", "seeds"}


@dataclass
class Run:
    """One training of one row with one seed.

    Attributes:
        group, row: names in the suite; the teacher's row is `teacher`.
        seed: of initial weights, data order and augmentation.
        config: yaml file.
        opts: config keys that the suite sets, without the teacher's files.
        teacher: run of the group's teacher, for a distilled row.
        weights: of a teacher that is trained already, and only evaluated.
    """

    group: str
    row: str
    seed: int
    config: str
    opts: dict
    teacher: Run | None = None
    weights: str = ""

    @cached_property
    def cfg(self) -> CfgNode:
        """The whole config, frozen, but for OUTPUT_DIR and the teacher's files.

        Of a detector whose distillation is switched off, that of the plain student.
        """
        cfg = load_config(self.config, [x for item in self.opts.items() for x in item])
        cfg.SEED = self.seed
        if not cfg.DISTILL.ENABLED:
            cfg = plain_student(cfg)
        cfg.freeze()
        return cfg

    @property
    def distilled(self) -> bool:
        return self.cfg.MODEL.META_ARCHITECTURE == DISTILLED

    @cached_property
    def config_hash(self) -> str:
        """Of config, seed, given weights, and the teacher's; not of what is in data sets, nor of
        methods that are not used.
        """
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR = ""
        cfg.DISTILL.TEACHER.CONFIG_FILE = cfg.DISTILL.TEACHER.WEIGHTS = ""
        for name, _ in DISTILLER_REGISTRY:
            if name not in cfg.DISTILL.METHODS and AUTO not in cfg.DISTILL.METHODS:
                cfg.DISTILL.pop(name.upper())
        if cfg.MODEL.META_ARCHITECTURE != DISTILLED:
            cfg.pop("DISTILL")
        teacher = self.teacher.config_hash if self.teacher else ""
        digest = hashlib.sha256(f"{cfg.dump()}{teacher}".encode())
        if self.weights:
            digest.update(Path(self.weights).read_bytes())
        return digest.hexdigest()[:12]

    @property
    def folder(self) -> str:
        """Name of its output folder; equal runs of one config file share it."""
        return f"{Path(self.config).stem}-seed{self.seed}-{self.config_hash}"


@dataclass
class Group:
    """Rows that are compared with each other: of one teacher, on one data set.

    Attributes:
        baselines: rows that all others are compared with, seed by seed.
        runs: the teacher's first.
    """

    name: str
    baselines: list[str]
    runs: list[Run] = field(default_factory=list)

    @property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(run.row for run in self.runs))


@dataclass
class Suite:
    """A suite file.

    Attributes:
        path: of the file.
        groups: in the order of the file.
        gains: (row, baseline) whose differences are drawn over the quality of the groups' teachers.
    """

    path: str
    groups: list[Group]
    gains: list[tuple[str, str]] = field(default_factory=list)

    def runs(self) -> Iterator[Run]:
        """Each training once: teachers first, then all rows of one seed before the next seed."""
        runs = [run for group in self.groups for run in group.runs]
        runs.sort(key=lambda run: (run.row != TEACHER, run.seed))
        unique = {}
        for run in runs:
            unique.setdefault(run.folder, run)
        yield from unique.values()


def load_suite(path: str) -> Suite:
    """Read a suite file.

    Its paths are relative to itself. A config may also be one that aid_d2 comes with, and a file
    that is not there is looked for from the working directory.

    Raises:
        FileNotFoundError: the file or one of its configs does not exist.
        ValueError: the file has unknown or missing keys, a name that is not there, or rows of a
            group that differ in more than their distillation.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"--suite: there is no file {path}.")
    content = yaml.safe_load(Path(path).read_text())
    _check_keys(path, "the suite", content, _SUITE_KEYS, {"seeds", "groups"})
    _check_seeds(path, "the suite", content["seeds"])
    if not isinstance(content["groups"], dict):
        raise ValueError(
            f"{path}: groups is {content['groups']!r}; it needs a name for each group."
        )
    common, groups = content.get("opts") or {}, []
    for name, entry in content["groups"].items():
        _check_keys(path, name, entry, _GROUP_KEYS, {"rows", "baselines"})
        group = Group(name, list(entry["baselines"]))
        if "teacher" in entry:
            _check_keys(path, f"{name}.{TEACHER}", entry["teacher"], _TEACHER_KEYS, {"config"})
            teacher = _run(path, name, TEACHER, TEACHER_SEED, entry["teacher"], common)
            teacher.weights = _beside(path, entry["teacher"].get("weights", ""))
            if teacher.weights and not Path(teacher.weights).is_file():
                raise FileNotFoundError(
                    f"{path}: {name}.{TEACHER} has no file {teacher.weights}. Train it first, or "
                    "leave out its weights to have it trained here."
                )
            group.runs.append(teacher)
        of_students = {**common, **(entry.get("opts") or {})}
        for row, spec in entry["rows"].items():
            _check_keys(path, f"{name}.{row}", spec, _ROW_KEYS, {"config"})
            if row == TEACHER:
                raise ValueError(
                    f"{path}: {name} has a row {row!r}, which the teacher's is called."
                )
            seeds = spec.get("seeds", content["seeds"])
            _check_seeds(path, f"{name}.{row}", seeds)
            for seed in seeds:
                run = _run(path, name, row, seed, spec, of_students)
                if run.distilled:
                    if "teacher" not in entry:
                        raise ValueError(f"{path}: {name}.{row} is distilled and has no teacher.")
                    run.teacher = teacher
                if seed == TEACHER_SEED and "teacher" in entry:
                    raise ValueError(
                        f"{path}: {name}.{row} has the seed {seed}, which is the teachers'. A "
                        "student has to start from weights of its own: choose others, such as 2, "
                        "3 and 4."
                    )
                group.runs.append(run)
        for baseline in group.baselines:
            if baseline not in group.rows:
                raise ValueError(f"{path}: {name} has no row {baseline!r}, one of its baselines.")
        _check_rows_are_comparable(path, group)
        groups.append(group)
    gains = []
    for entry in content.get("gains") or []:
        _check_keys(path, "an entry of gains", entry, _GAIN_KEYS, _GAIN_KEYS)
        gain = entry["of"], entry["over"]
        if not any({TEACHER, *gain} <= set(group.rows) for group in groups):
            raise ValueError(f"{path}: no group has a teacher and both rows of gains, {gain}.")
        gains.append(gain)
    return Suite(path, groups, gains)


def _run(path, group: str, row: str, seed: int, spec: dict, common: dict) -> Run:
    try:
        config = find_config(_beside(path, spec["config"]))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: {group}.{row}: {error}") from error
    return Run(group, row, seed, config, {**common, **(spec.get("opts") or {})})


def _beside(suite: str, name: str) -> str:
    """A file relative to the suite; where there is none, relative to the working directory."""
    path = Path(suite).parent / name
    return str(path) if path.is_file() else name


def _check_keys(path, where: str, node, known: set, required: set) -> None:
    if not isinstance(node, dict) or not required <= node.keys() <= known:
        found = sorted(node) if isinstance(node, dict) else node
        raise ValueError(
            f"{path}: {where} has {found}; it needs {sorted(required)} and may have "
            f"{sorted(known)}."
        )


def _check_seeds(path, where: str, seeds) -> None:
    if (
        not isinstance(seeds, list)
        or not seeds
        or not all(type(x) is int for x in seeds)
        or len(set(seeds)) < len(seeds)
    ):
        raise ValueError(
            f"{path}: {where} has seeds {seeds!r}; it needs a list of different ones, such as "
            "[2, 3, 4]."
        )


def _check_rows_are_comparable(path: str, group: Group) -> None:
    """Students of a group may differ in DISTILL alone: same data, schedule and network.

    Only images without labels may be added, since they are part of a method.
    """
    students = {}
    for run in {run.row: run for run in group.runs}.values():
        cfg = plain_student(run.cfg)
        if len(cfg.DATASETS.TEST) != 1:
            raise ValueError(
                f"{path}: {group.name}.{run.row} has DATASETS.TEST {list(cfg.DATASETS.TEST)}; a "
                "comparison needs one data set to evaluate on."
            )
        if run.row != TEACHER:
            students[run.row] = cfg
    first, *others = students
    for row in others:
        for node in ("DATASETS", "DATALOADER", "INPUT", "SOLVER", "MODEL", "TEST"):
            if _compared(students[first], node) != _compared(students[row], node):
                raise ValueError(
                    f"{path}: the rows {first!r} and {row!r} of {group.name} differ in {node}. "
                    "Rows of a group may differ in DISTILL alone; put others into a group of their "
                    "own."
                )


def _compared(cfg: CfgNode, node: str) -> CfgNode:
    part = cfg[node].clone()
    for key in ("UNLABELED", "UNLABELED_RATIO"):
        part.pop(key, None)
    if node == "DATASETS":
        used = (*part.TRAIN, *part.TEST)
        for key in ("COCO_JSON", "VOC", "YOLO"):
            part[key] = [list(entry) for entry in part[key] if entry[0] in used]
    return part
