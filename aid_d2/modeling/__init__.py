"""Detectors, the teacher, and the meta-architecture that distills one into the other."""
