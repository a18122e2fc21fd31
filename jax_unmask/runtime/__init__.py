"""Side effects around training: files, checkpoints, metrics, signals, meshes. Independent of
models.
"""
