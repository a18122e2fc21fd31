"""TraceRL of SDAR on mathematics and code by turns, which made TraDo-4B and TraDo-8B: `:MODEL`.

MODEL is 4b or 8b. After arXiv 2509.06949, section 5.1: reinforcement alone, from SDAR-Chat, on
MATH's training problems and PrimeIntellect's in turn; the 4B model with a value model, the 8B model
without one (figure 4). How long a turn takes is not published; here it is 10 steps, and the steps
of all turns are those of one published run (80). The value model begins anew in each turn.

    python -m jax_unmask.train --config=configs/trado.py:4b --workdir=runs/trado
"""

from jax_unmask import recipes

_VALUE = {"4b": " value.enabled=True learner.minibatches=128", "8b": ""}
_ROUNDS, _STEPS = 4, 10


def get_config(model: str = "4b"):
    if model not in _VALUE:
        raise ValueError(f"trado.py:{model} is unknown; use :4b or :8b")
    config = recipes.config("curriculum")
    config.stages = tuple(
        f"configs/tracerl_large.py:sdar-{model},{task} train.steps={_STEPS}{_VALUE[model]}"
        for _ in range(_ROUNDS)
        for task in ("math", "code")
    )
    return config
