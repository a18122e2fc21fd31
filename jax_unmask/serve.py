"""Serves a model by the OpenAI protocol, with a page to chat on.

jax-unmask serve --model=sudoku
jax-unmask serve --model=GSAI-ML/LLaDA-8B-Instruct --policy=learned:DIR --policy=threshold
"""

from jax_unmask.console import run

if __name__ == "__main__":
    run("serve")
