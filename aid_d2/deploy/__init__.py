"""From a checkpoint to its use: predictions, export, timing."""
