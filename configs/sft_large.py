"""Supervised training of a published model on data of one's own: `:MODEL` or `:MODEL,STATES`.

MODEL is llada, dream, sdar-1.7b, sdar-4b, sdar-8b, trado-4b or trado-8b. STATES is block (of SDAR
and TraDo, the default there), semi_ar (of LLaDA and Dream, likewise), random, trace, ar (Dream), or
long: block for responses of up to 30,000 tokens, TraDo-8B-Thinking's chains of thought.

    python -m jax_unmask.train --config=configs/sft_large.py:sdar-4b --config.task.path=my.jsonl

Data are JSON Lines or Parquet (docs/sft.md); without a path, the 2,000 published demonstrations.
Values are those of the public configurations of arXiv 2509.06949 ("dLLM-RL": sft_sdar, sft_trado,
sft_dream, sft_llada); lines without a source are ours. Several examples share a row of
`data.pack_length` tokens.
"""

from jax_unmask import recipes

# Name on the hub, and how a turn ends.
MODELS = {
    "llada": ("GSAI-ML/LLaDA-8B-Instruct", "<|eot_id|>"),
    "dream": ("Dream-org/Dream-v0-Instruct-7B", "<|im_end|>"),
    "sdar-1.7b": ("JetLM/SDAR-1.7B-Chat", "<|im_end|>"),
    "sdar-4b": ("JetLM/SDAR-4B-Chat", "<|im_end|>"),
    "sdar-8b": ("JetLM/SDAR-8B-Chat", "<|im_end|>"),
    "trado-4b": ("Gen-Verse/TraDo-4B-Instruct", "<|im_end|>"),
    "trado-8b": ("Gen-Verse/TraDo-8B-Instruct", "<|im_end|>"),
}


def get_config(choice: str = "sdar-4b"):
    model, _, states = choice.partition(",")
    is_full = model in ("llada", "dream")
    known = ("semi_ar", "random", "trace") if is_full else ("block", "trace", "long")
    known += ("ar",) if model == "dream" else ()
    states = states or known[0]
    if model not in MODELS or states not in known:
        of_model = f" and states of {', '.join(known)}" if model in MODELS else ""
        raise ValueError(
            f"sft_large.py:{choice} is unknown; use :MODEL or :MODEL,STATES with a model of "
            f"{', '.join(MODELS)}{of_model}"
        )
    path, end = MODELS[model]
    config = recipes.config("state_sft")
    config.model.update(path=path, dtype="bfloat16", remat=True)
    config.task.update(name="responses", path="hub:Gen-Verse/demon_openr1math")
    # Not chat=true: the published prompts went through a template.
    config.task.settings = (f"end={end}",)
    config.task.prompt_length = 784  # dLLM-RL, all.
    config.learner.update(mask_low=0.1, mask_high=0.9)  # dLLM-RL, all: lower_p and upper_p.
    config.learner.update(num_pads=1, chunk_size=32)
    config.learner.method = "block" if states == "long" else states
    config.optimizer.update(lr=1e-5, schedule="constant", b2=0.999)  # dLLM-RL, all.
    config.optimizer.update(weight_decay=0.0, grad_clip=1.0)  # dLLM-RL, all.
    if is_full:
        config.data.gen_length = 1024  # dLLM-RL, sft_dream and sft_llada.
        config.learner.update(block_length=16, normaliser="step")  # Likewise.
        # Those of two responses there, in 64 states each; too few to spread over devices.
        config.data.batch_size = 32
        config.data.length_buckets = (256, 512)
        if states == "random":
            config.learner.draws = 35 if model == "dream" else 1  # sft_dream, sft_llada.
        if states == "trace":
            config.learner.update(tokens_per_step=2, shrink=8)  # Paper, B.1: 16 tokens a state.
    else:
        config.data.gen_length = 30_000 if states == "long" else 2000  # dLLM-RL, sft_trado.
        config.learner.update(block_length=4, normaliser="length")  # Likewise.
        config.data.batch_size = 128  # Likewise: 1 x 16 on 8 devices.
        if states == "trace":
            config.learner.update(tokens_per_step=2, shrink=1)  # Paper, B.1: 2 tokens a state.
    if states != "ar":
        config.data.pack_length = 32_768 if states == "long" else 4096
    config.train.steps = 2000 // config.data.batch_size  # One pass over the demonstrations.
    config.checkpoint.every = 10
    return config
