"""Memory, communication and time that a training run needs, from shapes alone."""
