"""Side effects around training: files, checkpoints, metrics, signals, meshes. Knows no model."""
