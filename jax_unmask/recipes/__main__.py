"""Prints the reference of all settings: `python -m jax_unmask.recipes > docs/config.md`."""

from jax_unmask import recipes
from jax_unmask.environment.settings import RunSettings
from jax_unmask.settings import declared, reference

_HEAD = """# Settings

Every key of a config, with its default, type, range and meaning. This page is generated from the
declarations in the code (`python -m jax_unmask.recipes > docs/config.md`).

An experiment file starts from the defaults of a recipe and changes them; flags change them again:

```python
from jax_unmask import recipes


def get_config():
    config = recipes.config("policy_grpo")
    config.task.path = "/data/gsm8k"
    return config
```

```bash
python -m jax_unmask.train --config=configs/gsm8k.py --config.train.steps=100
```

A recipe's table has its own keys, and those whose defaults differ from every run's. Floats are
finite 32-bit numbers, and whole numbers at most 2**20 where nothing else is said (those that count
steps or problems: 2**31 - 1). A run may be resumed with other values of the keys that are marked
with ↻; all others belong to what a run is.
"""


def page() -> str:
    """The page as Markdown."""
    common = declared(RunSettings())
    parts = [_HEAD, f"## Every run\n\n{reference(common)}"]
    shared = {(each.key, each.help, each.range_text, each.default) for each in common}
    for name in recipes.RECIPES:
        summary = (recipes.find(name).__doc__ or "").strip().splitlines()[0]
        own = [
            each
            for each in declared(recipes.defaults(name))
            if (each.key, each.help, each.range_text, each.default) not in shared
            and each.key != "recipe"
        ]
        parts.append(f"## {name}\n\n{summary}\n\n{reference(own)}")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
