"""The denoiser, the tokenizer and the task that a config names: what all runs need."""
