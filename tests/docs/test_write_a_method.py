"""The page "Write your own distiller": its code, run as it says."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import torch
from helpers.pages import environment, small_training

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "aid_d2" / "distillers" / "README.md"


def test_the_page_trains(tmp_path, rectangles, distilled_cfg):
    method, script = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (command,) = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert method.count("\n") <= 35
    (tmp_path / "cosine.py").write_text(method)
    (tmp_path / "train.py").write_text(script)
    changes = small_training(["page_rectangles", *rectangles[1:]])
    (tmp_path / "small.yaml").write_text(distilled_cfg("RetinaNet", changes).dump())
    _, program, _, config, *options = shlex.split(command.replace("\\\n", " "))
    output = tmp_path / options[options.index("OUTPUT_DIR") + 1]
    assert (program, (ROOT / config).is_file()) == ("train.py", True)
    subprocess.run(
        [sys.executable, "-W", "ignore", program, "--config-file", "small.yaml", *options],
        cwd=tmp_path,
        env=environment(),
        check=True,
        capture_output=True,
    )
    lines = (output / "metrics.json").read_text().splitlines()
    assert json.loads(lines[-1])["loss_Cosine_feature"] > 0
    saved = torch.load(output / "model_final.pth", weights_only=False)["model"]
    assert any(key.startswith("distiller.Cosine.adapters.") for key in saved)
