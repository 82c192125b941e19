"""The statistics of a comparison by hand, and what the report says."""

import math
from statistics import mean, stdev

import pytest
from report import confidence_interval, paired, write_report
from suite import Group, Run, Suite

# AP50 of three seeds.
AP50 = {"teacher": [50.0], "student": [30.0, 31.0, 35.0], "zhang": [32.0, 34.0, 36.0]}


def results():
    return [
        {
            "group": "one",
            "row": row,
            "seed": seed,
            "AP": value / 2,
            "AP50": value,
            "AP75": value / 3,
            "seconds_per_step": 0.5,
            "peak_memory_mb": 1000,
            "versions": {"aid_d2": "abc"},
        }
        for row, values in AP50.items()
        for seed, value in enumerate(values, 1)
    ]


def suite():
    runs = [
        Run("one", row, seed, "", {}) for row, v in AP50.items() for seed in range(1, len(v) + 1)
    ]
    return Suite("my.yaml", [Group("one", ["student"], runs)])


def test_interval_by_hand():
    """Differences 1, 2, 3: mean 2, deviation 1, t(2) = 4.303."""
    centre, half = confidence_interval([1.0, 2.0, 3.0])
    assert centre == 2.0
    assert half == pytest.approx(4.303 / math.sqrt(3), rel=1e-4)
    assert confidence_interval([5.0])[0] == 5.0
    assert math.isnan(confidence_interval([5.0])[1])
    many = [float(i % 2) for i in range(400)]
    assert confidence_interval(many)[1] == pytest.approx(1.96593 * stdev(many) / 20, rel=1e-5)


def test_differences_are_paired_by_seed():
    assert paired(results(), "zhang", "student", "AP50") == [2.0, 3.0, 1.0]
    without_second = [x for x in results() if (x["row"], x["seed"]) != ("zhang", 2)]
    assert paired(without_second, "zhang", "student", "AP50") == [2.0, 1.0]
    assert paired(results(), "zhang", "nothing", "AP50") == []


def test_report(tmp_path):
    write_report(suite(), results(), tmp_path)
    lines = (tmp_path / "results.md").read_text().splitlines()
    table = {x.split("|")[1].strip(): [c.strip() for c in x.split("|")] for x in lines if "|" in x}
    header, zhang, teacher = table["row"], table["zhang"], table["teacher"]
    expected = f"{mean(AP50['zhang']):.1f} ± {stdev(AP50['zhang']):.1f}"
    assert zhang[header.index("AP50")] == expected
    assert zhang[header.index("AP50 - student")] == "+2.0 ± 2.5"
    assert zhang[header.index("seeds")] == "3"
    assert teacher[header.index("AP50")] == "50.0"
    assert teacher[header.index("AP50 - student")] == ""
    assert table["student"][header.index("AP50 - student")] == ""
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_fewer_pairs_than_seeds_and_mixed_versions_are_told(tmp_path):
    """Two of three seeds of the baseline: the difference is of two, 2 and 3."""
    some = [x for x in results() if (x["row"], x["seed"]) != ("student", 3)]
    write_report(suite(), some, tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "+2.5 ± 6.4 (2 seeds)" in text and "different versions" not in text
    some[0]["versions"] = {}
    write_report(suite(), some, tmp_path)
    assert "different versions of the code: abc, unknown" in (tmp_path / "results.md").read_text()


def test_gains_over_teachers_are_drawn(tmp_path, monkeypatch):
    """A panel per gain, with a point per teacher: its AP50, and the mean gain with its interval."""
    drawn = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.errorbar",
        lambda self, x, y, e, **kwargs: drawn.append((self.get_ylabel(), *x, *y, *e)),
    )
    with_gains = suite()
    with_gains.gains = [("zhang", "student"), ("student", "zhang")]
    write_report(with_gains, results(), tmp_path)
    half = pytest.approx(4.303 / math.sqrt(3), rel=1e-4)
    assert drawn == [
        ("AP50: zhang - student", 50.0, 2.0, half),
        ("AP50: student - zhang", 50.0, -2.0, half),
    ]
    assert (tmp_path / "gain.png").read_bytes().startswith(b"\x89PNG")


def test_report_of_a_suite_that_has_just_begun(tmp_path):
    begun = suite()
    begun.groups.append(Group("later", begun.groups[0].baselines, begun.groups[0].runs))
    write_report(begun, results()[:1], tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "| teacher" in text and "student" not in text and "later" not in text
    write_report(begun, [], tmp_path)


def test_a_run_that_detected_nothing_does_not_stop_the_report(tmp_path):
    """Detectron2 gives it NaN for each metric."""
    nothing = results()
    for metric in ("AP", "AP50", "AP75"):
        nothing[-1][metric] = math.nan
    with_gains = suite()
    with_gains.gains = [("zhang", "student")]
    write_report(with_gains, nothing, tmp_path)
    (row,) = [x for x in (tmp_path / "results.md").read_text().splitlines() if "| zhang" in x]
    assert "nan" in row and (tmp_path / "gain.png").exists()
