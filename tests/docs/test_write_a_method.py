"""The page "Write your own method": its code, run as it says."""

import json
import re
import subprocess
from pathlib import Path

import torch
import yaml
from helpers.pages import AID_D2, environment, small_training

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "write_a_method.md"


def test_the_page_trains(tmp_path, rectangles, distilled_cfg):
    (method,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (config,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (command,) = re.findall(r"```bash\naid-d2 (.*?)\n```", PAGE.read_text(), re.DOTALL)
    assert method.count("\n") <= 35
    keys = yaml.safe_load(config)
    assert (ROOT / "configs" / keys["_BASE_"]).is_file()
    changes = small_training(["page_rectangles", *rectangles[1:]])
    (tmp_path / "small.yaml").write_text(distilled_cfg("RetinaNet", changes).dump())
    (tmp_path / "cosine.py").write_text(method)
    (tmp_path / "cosine.yaml").write_text(config.replace(keys["_BASE_"], "small.yaml"))
    subprocess.run(
        [*AID_D2, *command.split()],
        cwd=tmp_path,
        env=environment(),
        check=True,
        capture_output=True,
    )
    output = tmp_path / keys["OUTPUT_DIR"]
    lines = (output / "metrics.json").read_text().splitlines()
    assert json.loads(lines[-1])["loss_Cosine_feature"] > 0
    saved = torch.load(output / "model_final.pth", weights_only=False)["model"]
    assert any(key.startswith("distiller.Cosine.adapters.") for key in saved)
