r"""Trains and evaluates all rows of a suite, and compares them seed by seed.

    python benchmarks/compare.py --suite benchmarks/suites/highway_cpu.yaml \
        --output output/highway_cpu

What is done is kept: stopped or killed, the same command goes on where it was. `--output` then has

    results.json    `runs`: row, seed, AP, AP50, AP75, AP of each class, seconds_per_step and what
                    of it was spent waiting for data, peak_memory_mb, the iterations that it was
                    resumed at, config_hash and versions
    results.md      means, spread over seeds, and paired differences with confidence intervals
    results.png     and gain.png, if the suite has `gains`

after each run that ends. A run that was stopped goes on from its last checkpoint, with the data
from the start, as always in Detectron2; without a checkpoint it starts anew. A run whose config has
changed since is trained anew, in a folder of its own; for data that has changed choose another
`--output`. Each run has one GPU; `--jobs` trains several runs at a time, by default as many as
there are GPUs.
"""

import argparse
import ctypes
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torchvision
from report import write_report
from suite import Run, load_suite

from aid_d2.engine.metrics import read_metrics
import detectron2

ROOT = Path(__file__).resolve().parents[1]
_PR_SET_PDEATHSIG = 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", required=True, metavar="FILE.yaml")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--jobs", type=int, default=max(torch.cuda.device_count(), 1), help="runs at a time"
    )
    args = parser.parse_args()
    if args.jobs < 1:
        raise ValueError(f"--jobs is {args.jobs}; it has to be 1 at least.")
    suite = load_suite(args.suite)
    jobs = [Job(run, args.output) for run in suite.runs()]
    failed = train_all(jobs, args.jobs, lambda: report(suite, jobs, args.output))
    report(suite, jobs, args.output)
    print(f"\n{(args.output / 'results.md').read_text()}")
    if failed:
        sys.exit(f"{len(failed)} runs failed: see {', '.join(str(x.log) for x in failed)}")


class Job:
    """A run in its folder."""

    def __init__(self, run: Run, output: Path):
        self.run = run
        self.teacher = Job(run.teacher, output) if run.teacher else None
        self.folder = output / "runs" / run.folder
        # Its config, log and metrics; a teacher that is there already is only evaluated.
        self.logs = self.folder / "inference" if run.weights else self.folder
        self.log = self.folder / "console.txt"
        self.max_iter = 0 if run.weights else run.cfg.SOLVER.MAX_ITER
        self.process = None
        self.code = ""

    @property
    def weights(self) -> str:
        """Where they are once it is done."""
        return self.run.weights or str(self.folder / "model_final.pth")

    @property
    def result(self) -> dict:
        """What it reached; empty until it is done."""
        file = self.folder / "result.json"
        return json.loads(file.read_text()) if file.exists() else {}

    @property
    def ready(self) -> bool:
        """Whether there is a teacher, if it needs one."""
        return self.teacher is None or bool(self.teacher.result)

    def start(self, slot: int, threads: int) -> None:
        """Train it, in a process that ends with this one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.code = code_version()
        opts = {**self.run.opts, "SEED": self.run.seed, "OUTPUT_DIR": str(self.folder)}
        if self.teacher:
            opts["DISTILL.TEACHER.CONFIG_FILE"] = str(self.teacher.logs / "config.yaml")
            opts["DISTILL.TEACHER.WEIGHTS"] = self.teacher.weights
        if self.run.weights:
            opts["MODEL.WEIGHTS"] = self.run.weights
        command = [sys.executable, "-W", "ignore", str(ROOT / "train_net.py")]
        command += ["--eval-only" if self.run.weights else "--resume"]
        command += ["--config-file", self.run.config, *(str(x) for kv in opts.items() for x in kv)]
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        if torch.cuda.is_available():
            count = torch.cuda.device_count()
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))
            environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[slot % count]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, preexec_fn=_end_with_parent
            )

    def ended(self) -> bool:
        """Whether the process is over; then its result is written, if it has one."""
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if pid == 0:
            return False
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if self.process.returncode == 0:
            scratch = self.folder / "result.json.writing"
            scratch.write_text(json.dumps(self.measure(usage.ru_maxrss / 1024), indent=1))
            scratch.replace(self.folder / "result.json")
        return True

    def measure(self, resident_mb: float) -> dict:
        lines = self.metrics()
        final = lines[-1]
        # Detectron2 logs the peak of the GPU's memory, but writes it to no metric.
        log = (self.logs / "log.txt").read_text()
        on_gpu = re.findall(r"max_mem: (\d+)M", log)
        starts = map(int, re.findall(r"Starting training from iteration (\d+)", log))
        return {
            "seed": self.run.seed,
            "config": self.run.config,
            "opts": self.run.opts,
            **{k.removeprefix("bbox/"): v for k, v in final.items() if k.startswith("bbox/AP")},
            **{k: v for k, v in final.items() if k.startswith("kitti/")},
            "seconds_per_step": median(lines, "time"),
            "data_seconds_per_step": median(lines, "data_time"),
            "peak_memory_mb": max(map(int, on_gpu)) if on_gpu else round(resident_mb),
            "resumed_at": [x for x in starts if x > 0],
            "config_hash": self.run.config_hash,
            "versions": {
                "aid_d2": self.code,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
                "detectron2": detectron2.__version__,
            },
        }

    def metrics(self) -> list:
        return read_metrics(self.logs / "metrics.json")

    def seconds_left(self, usual: float) -> float:
        """By its own pace, or before it has one the usual one in seconds per step."""
        lines = [x for x in self.metrics() if "time" in x]
        if self.result:
            return 0.0
        if not lines:
            return usual * self.max_iter
        return lines[-1]["time"] * (self.max_iter - lines[-1]["iteration"])


def code_version() -> str:
    """The commit of this checkout, with `-dirty` after it where files have changed since."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def median(lines: list[dict], name: str) -> float | None:
    """Of a metric; Detectron2 gives the first steps no time, and an evaluation none at all."""
    values = [x[name] for x in lines if name in x]
    return statistics.median(values) if values else None


def train_all(jobs: list[Job], slots: int, after_each) -> list[Job]:
    """Train what has no result, at most `slots` runs at a time; returns those that failed."""
    waiting = [job for job in jobs if not job.result]
    print(f"{len(jobs)} runs, {len(jobs) - len(waiting)} of them done.")
    threads = max((os.cpu_count() or 1) // slots, 1)
    running: dict[int, Job] = {}
    failed: list[Job] = []
    shown = 0.0
    while waiting or running:
        for slot in set(range(slots)) - running.keys():
            job = next((x for x in waiting if x.ready), None)
            if job:
                waiting.remove(job)
                job.start(slot, threads)
                running[slot] = job
        for slot, job in list(running.items()):
            if job.ended():
                del running[slot]
                if job.process.returncode:
                    failed.append(job)
                    print(f"FAILED: {job.run.folder}, see {job.log}", flush=True)
                else:
                    print(f"done: {job.run.folder}, AP50 {job.result['AP50']:.1f}", flush=True)
                    after_each()
        if not running and not any(x.ready for x in waiting):
            failed += waiting  # their teachers failed
            break
        if time.monotonic() - shown > 60:
            shown = time.monotonic()
            show_progress(jobs, running, slots)
        time.sleep(0.5)
    return failed


def show_progress(jobs: list[Job], running: dict[int, Job], slots: int) -> None:
    paces = [x["time"] for job in jobs for x in job.metrics()[-2:-1] if "time" in x]
    usual = statistics.mean(paces) if paces else 0.0
    left = sum(job.seconds_left(usual) for job in jobs) / slots
    names = ", ".join(f"{job.run.row} (seed {job.run.seed})" for job in running.values())
    done = sum(bool(job.result) for job in jobs)
    estimate = f"about {left / 60:.0f} minutes left" if paces else "time left not known yet"
    print(f"{done}/{len(jobs)} done, {estimate}; training {names}", flush=True)


def report(suite, jobs: list[Job], output: Path) -> None:
    """results.json, results.md and results.png of what is done."""
    done = {job.run.folder: job.result for job in jobs if job.result}
    results = [
        {"group": group.name, "row": run.row, **done[run.folder]}
        for group in suite.groups
        for run in group.runs
        if run.folder in done
    ]
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(
        json.dumps({"suite": suite.path, "runs": results}, indent=1)
    )
    write_report(suite, results, output)


def _end_with_parent() -> None:
    """In a new process: be stopped by the kernel when the parent is gone, however it went."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    main()
