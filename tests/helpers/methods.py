"""Which method serves which detector."""

from aid_d2.distillers import DISTILLER_REGISTRY

METHODS = sorted(name for name, _ in DISTILLER_REGISTRY)
DETECTORS = ("RetinaNet", "FCOS", "GFL", "FasterRCNN")
DENSE = ("RetinaNet", "FCOS", "GFL")
# Methods that not every detector can use.
SERVES = {"CrossKD": DENSE, "LD": ("GFL",), "DKD": ("FasterRCNN",)}
SERVED = [(m, d) for m in METHODS for d in SERVES.get(m, DETECTORS)]
# The towers of the small detectors have a single convolution.
SHALLOW = {f"DISTILL.CROSSKD.{name.upper()}.POSITION": 1 for name in DENSE}
