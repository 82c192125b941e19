"""benchmarks/random_detector.py: a detector that can be timed before anything is trained."""

import random_detector
import torch

from aid_d2.deploy.detector import TrainedDetector


def test_a_random_detector_detects(small_cfg, monkeypatch, tmp_path, make_batch):
    (tmp_path / "small.yaml").write_text(small_cfg("RetinaNet").dump())
    arguments = ["--config-file", str(tmp_path / "small.yaml"), "--output", str(tmp_path / "out")]
    threshold = ["MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"]
    monkeypatch.setattr("sys.argv", ["random_detector.py", *arguments, *threshold])
    random_detector.main()
    files = (str(tmp_path / "out" / name) for name in ("config.yaml", "model_final.pth"))
    detector = TrainedDetector.load(*files)
    found = detector(make_batch()[0]["image"].permute(1, 2, 0).numpy())
    assert len(found) > 0 and torch.isfinite(found.pred_boxes.tensor).all()
    # Norms have seen noise: maps neither vanish nor explode.
    with torch.no_grad():
        maps = detector.model.backbone(torch.randn(1, 3, 128, 128))
    assert all(0.01 < x.std() < 100 for x in maps.values())
