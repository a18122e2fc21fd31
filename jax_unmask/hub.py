"""Shares policies and denoisers by their name on the Hugging Face hub.

jax-unmask hub push runs/gsm8k --name=OWNER/NAME
jax-unmask hub pull OWNER/NAME --output=DIR
"""

from jax_unmask.console import run

if __name__ == "__main__":
    run("hub")
