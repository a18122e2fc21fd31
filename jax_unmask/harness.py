"""Runs tasks of lm-evaluation-harness.

jax-unmask harness --model=GSAI-ML/LLaDA-8B-Instruct --tasks=gsm8k
"""

from jax_unmask.console import run

if __name__ == "__main__":
    run("harness")
