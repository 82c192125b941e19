"""What a kill leaves in a metrics.json is read as far as it is whole."""

from aid_d2.engine.metrics import read_metrics


def test_whole_lines_alone(tmp_path):
    path = tmp_path / "metrics.json"
    assert read_metrics(path) == []
    # Cut off, gone on with, and cut off again.
    path.write_text('{"a": 1}\n{"a": 2, "b{"a": 3}\n{"a": 4}\n{"a": 5}')
    assert read_metrics(path) == [{"a": 1}, {"a": 4}]
