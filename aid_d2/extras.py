"""Packages that single parts of aid_d2 need, and are not installed with it."""

# By package: the extra that installs it, and what it is for.
EXTRAS = {
    "timm": ("timm", "backbones of timm"),
    "onnx": ("export", "aid-d2 export"),
    "onnxscript": ("export", "aid-d2 export"),
    "onnxruntime": ("export", "aid-d2 export and benchmark"),
    "openvino": ("openvino", "aid-d2 benchmark --openvino"),
    "scipy": ("benchmarks", "intervals in comparisons of runs"),
}
