"""Measures speed: `python -m jax_unmask.bench --preset=tiny --batch_sizes=1,8,64`."""

from jax_unmask.commands.bench import main

if __name__ == "__main__":
    main()
