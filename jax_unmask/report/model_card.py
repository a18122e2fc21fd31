"""The card of a trained policy: a README for model hubs and for users."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jax_unmask import policies
from jax_unmask.denoisers import hub
from jax_unmask.denoisers.pretrained import read_config
from jax_unmask.report.results import TRAINED, settings_text
from jax_unmask.report.tables import markdown_table
from jax_unmask.runtime.files import atomic_write, read_json_rows
from jax_unmask.runtime.metrics import METRICS
from jax_unmask.shipped import shipped_models

CARD = "README.md"
_LAST = 20
_SHOWN = ("accuracy", "nfe", "reward", "unfinished")


def policy_card(
    config: Any,
    settings: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The card as Markdown with a YAML header.

    Args:
        config: the settings that the policy was trained with.
        settings: its default settings, by name.
        steps: metrics of the training steps, in order.
        results: rows of `results.jsonl` that measured this policy.
    """
    places = config.each
    models = dict.fromkeys(str(each.model.path) for each in places)
    tasks = dict.fromkeys(each.task.name for each in places)
    # Models that ship pose their own problems; others need data for that, and take a prompt.
    prompt = "" if next(iter(models)) in shipped_models() else " --chat --prompt='What is 17 * 3?'"
    if len(models) > 1:
        prompt = f" --model={next(iter(models))}{prompt}"
    header: dict[str, Any] = {
        "library_name": "jax_unmask",
        "tags": ["diffusion-language-model", "unmasking-policy"],
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
    }
    if bases := [model for model in models if hub.is_name(model)]:
        header["base_model"] = bases[0] if len(bases) == 1 else bases
    if results:
        header["model-index"] = _index(results)
    lines = [
        *_header(header),
        f"# Unmasking policy for {', '.join(models)} on {', '.join(tasks)}",
        "",
        "Decides at each step which masked positions a masked diffusion language model fills "
        "([arXiv 2512.09106](https://arxiv.org/abs/2512.09106)); `model.safetensors` and "
        "`policy_config.json` are also read by the method's public PyTorch code where the network "
        "observes what that one does.",
        "",
        "## Trained on",
        "",
        "| | |",
        "|---|---|",
        *(row for each in places for row in _place(each)),
        f"| reward | {config.reward.kind}, {_alphas(config)} |",
        f"| steps | {int(steps[-1]['step']) if steps else 0}, seed {config.seed} |",
        f"| start | {'another trained policy' if config.policy.init_from else 'random weights'} |",
        "",
        "## Expected settings",
        "",
        *(
            f"- {name}: {f'{value:g}' if isinstance(value, float) else value}"
            for name, value in settings.items()
        ),
        "",
        "Model, canvas and blocks are those of the training unless others are given. In this "
        "directory:",
        "",
        "```bash",
        f"python -m jax_unmask.generate --policy=learned:.{prompt}",
        "```",
        "",
        "## Metrics",
        "",
    ]
    return "\n".join([*lines, *_training(steps), *_measured(results)]) + "\n"


def denoiser_card(directory: pathlib.Path) -> str:
    """A card of a denoiser, which says what its files say."""
    config = read_config(directory)
    header = {
        "library_name": "jax_unmask",
        "tags": ["diffusion-language-model"],
        "pipeline_tag": "text-generation",
    }
    size = f"{config.num_layers} layers of width {config.hidden_size}"
    return "\n".join(
        [
            *_header(header),
            f"# A masked diffusion language model: family {config.family}, {size}",
            "",
            "```bash",
            "python -m jax_unmask.generate --model=. --prompt='...'",
            "```",
            "",
        ]
    )


def _header(values: Mapping[str, Any]) -> list[str]:
    return ["---", *(f"{name}: {json.dumps(value)}" for name, value in values.items()), "---", ""]


def _index(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Measurements as the hub's pages show them."""
    found = []
    for row in results:
        acts = f"blocks of {row['block_length']}, {settings_text(row['settings'].items())}"
        values = (
            ("accuracy", "accuracy %", round(100 * row["accuracy"], 1)),
            ("nfe", "denoiser forwards per sequence", round(row["nfe_mean"], 2)),
        )
        found.append(
            {
                "task": {"type": "text-generation"},
                "dataset": {"name": row["task"], "type": row["task"], "split": row["split"]},
                "metrics": [
                    {"type": kind, "name": f"{name} ({acts.rstrip(', ')})", "value": value}
                    for kind, name, value in values
                ],
            }
        )
    return [{"name": "policy", "results": found}]


def write_policy_card(directory: pathlib.Path, config: Any, workdir: pathlib.Path) -> None:
    """Writes the card of a policy directory, from metrics and results in its run's `workdir`."""
    steps = read_json_rows(workdir / METRICS, "step")
    rows = read_json_rows(workdir / "results.jsonl", "label")
    results = [row for row in rows if row["label"] == TRAINED]
    settings = policies.settings_of(*policies.load_policy(directory))
    card = policy_card(config, settings, steps, results)
    atomic_write(directory / CARD, card)


def _place(config: Any) -> list[str]:
    """Rows about one environment of the training."""
    rollout = config.rollout
    return [
        f"| denoiser | {config.model.path}, frozen, {_weights(config)} |",
        f"| task | {config.task.name} |",
        f"| canvas | {rollout.gen_length} tokens in blocks of {rollout.block_length}, "
        f"temperature {rollout.temperature:g}, cache {rollout.cache or 'none'} |",
        f"| each step | {rollout.prompts_per_step} prompts x {rollout.group_size} rollouts, "
        f"{_experts(config)} |",
    ]


def _alphas(config: Any) -> str:
    if told := dict(config.policy.network.values).get("alphas"):
        return f"told alphas from {told[0]:g} to {told[1]:g}"
    return f"alpha {config.reward.alpha:g}"


def _experts(config: Any) -> str:
    expert = config.expert
    text = f"{expert.count} experts"
    if expert.count:
        text += f" ({expert.policy} in blocks of {expert.block_length})"
    if expert.imitation:
        which = "right rollouts" if expert.imitated == "right" else "rollouts"
        text += f" whose {which} are imitated in the first {expert.imitation_steps} steps"
    return text


def _weights(config: Any) -> str:
    kind = config.model.quantization
    return config.model.param_dtype if kind is None else f"{kind} ({config.model.param_dtype})"


def _training(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    last = steps[-_LAST:]
    if not last:
        return ["No training steps were recorded."]
    names = [name for name in _SHOWN if all(name in step for step in last)]
    means = {name: sum(step[name] for step in last) / len(last) for name in names}
    rows = [["metric", "value"], *([name, f"{value:.4g}"] for name, value in means.items())]
    return [
        f"Sampled rollouts of training problems, mean of the last {len(last)} recorded steps:",
        "",
        markdown_table(rows),
    ]


def _measured(results: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [["task", "split", "n", "block", "policy", "accuracy", "NFE"]]
    for row in results:
        accuracy = f"{100 * row['accuracy']:.1f} ± {100 * row['accuracy_se']:.1f}"
        policy = settings_text(row["settings"].items()) or "as saved"
        place = [row["task"], row["split"], str(row["n"]), str(row["block_length"])]
        rows.append([*place, policy, accuracy, f"{row['nfe_mean']:.2f}"])
    return ["", "Held-out problems:", "", markdown_table(rows)] if results else []
