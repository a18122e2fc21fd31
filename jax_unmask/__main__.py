"""Lists and runs the commands: `python -m jax_unmask`."""

from jax_unmask.console import main

if __name__ == "__main__":
    main()
