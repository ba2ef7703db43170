"""The normalizations that `compare` compares, by name."""

NORMS = ("none", "batch", "layer", "rms", "group", "instance")
NUM_GROUPS = 4  # of group norm
