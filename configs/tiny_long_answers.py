"""Long worked answers, then reinforcement with growing length budgets: `:METHOD,SEED`.

A denoiser that has only seen terse answers, which merge steps, to problems of worked arithmetic:

    python -m jax_unmask.train --config=configs/tiny_sft.py:arithmetic \\
        --workdir=runs/terse_arithmetic --config.train.steps=4000 \\
        --config.task.settings="('max_verbosity=0.0',)"
    python -m jax_unmask.train --config=configs/tiny_long_answers.py:both,0 --workdir=runs/both-0

`both` trains it on answers of one line per step, in words, then by TraceRL on canvases of 20, 26
and 32; `fixed` the same on canvases of 32 throughout. `:METHOD,SEED,MODEL` starts from another
directory than runs/terse_arithmetic/model.
"""

from jax_unmask import recipes

_SFT = (
    "configs/tiny_sft.py:arithmetic task.settings=\"('min_verbosity=1.0',)\" "
    "train.steps=300 optimizer.lr=5e-4 optimizer.warmup_steps=20 checkpoint.every=100"
)
_LENGTHS = {"both": (20, 26, 32), "fixed": (32,)}
_STEPS = 60


def get_config(choice: str = "both"):
    method, *more = choice.split(",")
    seed, *model = more or ["0"]
    if method not in _LENGTHS or not seed.isdecimal() or len(model) > 1:
        raise ValueError(f"tiny_long_answers.py:{choice} is unknown; use :both,SEED or :fixed,SEED")
    lengths = _LENGTHS[method]
    stages = [f"{_SFT} model.path={model[0] if model else 'runs/terse_arithmetic/model'}"]
    for length in lengths:
        stages.append(
            f"configs/tracerl.py train.steps={_STEPS // len(lengths)} "
            f"rollout.gen_length={length} rollout.block_length={length} "
            f"eval.block_lengths=({length},)"
        )
    config = recipes.config("curriculum")
    # Problems and draws of a stage are not those of another.
    config.stages = tuple(
        f"{stage} seed={4 * int(seed) + number}" for number, stage in enumerate(stages)
    )
    return config
