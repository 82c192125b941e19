"""Building blocks that several methods or detectors share."""
