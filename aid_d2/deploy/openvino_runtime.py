"""The files of `aid-d2 export` in OpenVINO, which is faster on Intel's processors."""

import numpy as np
import onnx
import openvino

from . import runtime


class OpenVinoDetector(runtime.Detector):
    """An exported detector in OpenVINO.

    Args:
        path: of the .onnx file.
        threads: of the processor.
        precision: `f32`, `bf16` or `f16`; by default OpenVINO's choice for the processor.

    Raises:
        ValueError: the file is not of `aid-d2 export`.
    """

    def __init__(self, path: str, threads: int = 0, precision: str = ""):
        self.path = path
        stored = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        self.metadata = runtime.read_metadata(path, stored)
        options = {"INFERENCE_NUM_THREADS": threads}
        if precision:
            options["INFERENCE_PRECISION_HINT"] = precision
        self.compiled = openvino.Core().compile_model(path, "CPU", options)
        precision = self.compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.runtime = f"OpenVINO, {precision}"

    def infer(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        outputs = self.compiled(inputs)
        return outputs["boxes"], outputs["scores"], outputs["classes"]
