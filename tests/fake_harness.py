"""lm-evaluation-harness, as far as `evaluation.harness_model` needs it: nothing to install."""

import importlib
import sys
import types
from typing import Any

_MODULE = "jax_unmask.evaluation.harness_model"


class _Model:
    cache_hook = types.SimpleNamespace(add_partial=lambda *_: None)


def model_class(monkeypatch) -> type[Any]:
    """`HarnessModel` on stand-ins for the classes of the harness."""
    for module, content in (
        ("", {}),
        (".api", {}),
        (".api.instance", {"Instance": object}),
        (".api.model", {"LM": _Model}),
    ):
        monkeypatch.setitem(sys.modules, f"lm_eval{module}", types.SimpleNamespace(**content))
    found = importlib.import_module(_MODULE).HarnessModel
    # The next import is to get the harness that is installed, if there is one.
    monkeypatch.delitem(sys.modules, _MODULE)
    return found


def ask(model: Any, method: str, *arguments: tuple[Any, ...]) -> list[Any]:
    """A model's answers to requests with these arguments."""
    return getattr(model, method)([types.SimpleNamespace(args=each) for each in arguments])
