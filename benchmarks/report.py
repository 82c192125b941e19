"""What the results of a suite show: tables with spread and paired differences, and a picture."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure
from numpy import mean, std
from scipy.stats import t as student_t
from suite import TEACHER, Group, Suite
from tabulate import tabulate

# The last one is that of the AID paper, on KITTI.
_METRICS = ("AP", "AP50", "AP75", "kitti/VOC_AP50")


def confidence_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean of paired differences and half the width of its 95% interval (Student's t).

    Args:
        differences: one per seed.

    Returns:
        mean and half width; NaN with fewer than two seeds.
    """
    n = len(differences)
    if n < 2:
        return (mean(differences) if n else math.nan), math.nan
    return mean(differences), student_t.ppf(0.975, n - 1) * std(differences, ddof=1) / math.sqrt(n)


def paired(results: Sequence[dict], row: str, baseline: str, metric: str) -> list[float]:
    """row - baseline for each seed that both have.

    Args:
        results: of one group.
    """
    by_row = {
        name: {x["seed"]: x[metric] for x in results if x["row"] == name}
        for name in (row, baseline)
    }
    shared = sorted(by_row[row].keys() & by_row[baseline].keys())
    return [by_row[row][seed] - by_row[baseline][seed] for seed in shared]


def write_report(suite: Suite, results: Sequence[dict], folder: Path) -> None:
    """Write results.md, results.png, and for a suite with `gains` gain.png.

    Groups and rows of which nothing has been run yet are left out.

    Args:
        suite: what was run.
        results: the entries of `runs` in results.json, of all groups.
        folder: where to.
    """
    sections = [f"# {suite.path}\n"]
    begun = [_begun(group, results) for group in suite.groups]
    suite = replace(suite, groups=[group for group in begun if group.runs])
    for group in suite.groups:
        sections.append(f"## {group.name}\n\n{_table(group, _of(group, results))}\n")
    sections.append(
        "AP, AP50: mean ± standard deviation over seeds. Differences are paired by seed, with the "
        "95% interval of Student's t. All rows of a table have one teacher: another training of it "
        "may move all of them."
    )
    versions = sorted({x["versions"].get("aid_d2", "unknown") for x in results})
    if len(versions) > 1:
        sections.append(f"\nRuns are of different versions of the code: {', '.join(versions)}.")
    (folder / "results.md").write_text("\n".join(sections) + "\n")
    if not suite.groups:
        return
    _draw(suite, results, folder / "results.png")
    if suite.gains:
        _draw_gain(suite, results, folder / "gain.png")


def _of(group: Group, results: Sequence[dict]) -> list[dict]:
    return [x for x in results if x["group"] == group.name]


def _begun(group: Group, results: Sequence[dict]) -> Group:
    rows = {x["row"] for x in _of(group, results)}
    runs = [run for run in group.runs if run.row in rows]
    return replace(group, runs=runs, baselines=[x for x in group.baselines if x in rows])


def _table(group: Group, results: Sequence[dict]) -> str:
    rows = []
    for row in group.rows:
        runs = [x for x in results if x["row"] == row]
        line = {"row": row, "seeds": len(runs)}
        for metric in _METRICS:
            if any(metric in x for x in results):
                line[metric] = _spread([x[metric] for x in runs if metric in x])
        for baseline in group.baselines:
            for metric in ("AP", "AP50"):
                line[f"{metric} - {baseline}"] = (
                    ""
                    if row in (baseline, TEACHER)
                    else _interval(paired(results, row, baseline, metric), len(runs))
                )
        line["s/step"] = _value([x["seconds_per_step"] for x in runs], "{:.2f}")
        line["memory (MB)"] = _value([x["peak_memory_mb"] for x in runs], "{:.0f}")
        rows.append(line)
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def _value(values: Sequence[float | None], text: str) -> str:
    known = [x for x in values if x is not None]
    return text.format(mean(known)) if known else ""


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.1f}" + (f" ± {std(values, ddof=1):.1f}" if len(values) > 1 else "")


def _interval(differences: Sequence[float], seeds: int) -> str:
    if not differences:
        return ""
    centre, half = confidence_interval(differences)
    pairs = len(differences)
    return (
        f"{centre:+.1f}"
        + ("" if math.isnan(half) else f" ± {half:.1f}")
        + ("" if pairs == seeds else f" ({pairs} seed{'s' if pairs > 1 else ''})")
    )


def _draw(suite: Suite, results: Sequence[dict], path: Path) -> None:
    """AP50 of each run as a dot and of each row as a bar, a panel for each group."""
    count = len(suite.groups)
    columns = min(count, 3)
    lines = math.ceil(count / columns)
    height = 1.0 + 0.35 * max(len(group.rows) for group in suite.groups)
    figure = Figure(figsize=(5 * columns, height * lines), layout="tight")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel in panels[count:]:
        panel.axis("off")
    for panel, group in zip(panels, suite.groups):
        for y, row in enumerate(group.rows):
            values = [x["AP50"] for x in _of(group, results) if x["row"] == row]
            if values:
                panel.barh(y, mean(values), color="lightgray" if row == TEACHER else "skyblue")
                panel.plot(values, [y] * len(values), "k.", markersize=4)
        panel.set_yticks(range(len(group.rows)), group.rows)
        panel.invert_yaxis()
        panel.set_xlabel("AP50")
        panel.set_title(group.name)
    figure.savefig(path, dpi=120)


def _draw_gain(suite: Suite, results: Sequence[dict], path: Path) -> None:
    """AP50 that rows gain over others, against the AP50 of the teacher: a dot per seed."""
    count = len(suite.gains)
    figure = Figure(figsize=(5 * count, 4), layout="tight")
    panels = figure.subplots(1, count, sharex=True, sharey=True, squeeze=False)
    for axes, (row, baseline) in zip(panels[0], suite.gains):
        axes.set_xlabel("AP50 of the teacher")
        axes.set_ylabel(f"AP50: {row} - {baseline}")
        for index, group in enumerate(suite.groups):
            of_group = _of(group, results)
            gains = paired(of_group, row, baseline, "AP50")
            quality = [x["AP50"] for x in of_group if x["row"] == TEACHER]
            if not gains or not quality:
                continue
            axes.plot(quality * len(gains), gains, "k.", markersize=4)
            centre, half = confidence_interval(gains)
            spread = 0.0 if math.isnan(half) else half
            # A group has one colour, also where others are missing in a panel.
            look = {"fmt": "o", "capsize": 4, "color": f"C{index}", "label": group.name}
            axes.errorbar(quality, [centre], [spread], **look)
        axes.axhline(0.0, color="gray", linewidth=0.5)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    figure.savefig(path, dpi=120)
