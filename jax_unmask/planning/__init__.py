"""What a training run needs of its devices, from shapes alone."""
