"""Settings of every run, whatever its recipe: its task, denoiser, devices, length, evaluation."""

import contextlib
import dataclasses
from typing import Any, ClassVar, Literal

from jax_unmask.rollout import RolloutSettings
from jax_unmask.runtime import placement as placements
from jax_unmask.runtime.checkpoints import CheckpointSettings
from jax_unmask.runtime.metrics import LogSettings
from jax_unmask.runtime.placement import MeshSettings, Placement
from jax_unmask.runtime.watch import WatchSettings
from jax_unmask.settings import MAX_INT, Settings, setting

DType = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class TaskSettings(Settings):
    """The problems."""

    name: str = setting("gsm8k", "Name of a task, or the import path of one of your own.")
    path: str | None = setting(
        None,
        "Directory or file of the data, or hub:OWNER/NAME; None for the published data set of the "
        "task. Not used by tasks that generate their problems.",
    )
    settings: tuple[str, ...] = setting(
        (),
        "Further settings of the task, as SETTING=VALUE (difficulty=level:3..5); of a task of a "
        "mixture as TASK.SETTING=VALUE.",
    )
    mixture: tuple[str, ...] = setting(
        ("gsm8k", "math"), "Tasks of task mixture, with weights as in gsm8k=2."
    )
    tfds_data_dir: str | None = setting(
        None, "Directory in which TensorFlow Datasets prepares gsm8k; None for its own default."
    )
    prompt_length: int = setting(200, "Prompt budget P in tokens.", ge=1, le=2**17)
    prompt_buckets: tuple[int, ...] = setting(
        (),
        "Shorter lengths to which prompts are padded where they fit: in evaluations each problem, "
        "in training each batch; every length compiles its own programs.",
        ge=1,
    )
    truncate_prompts: bool = setting(
        True,
        "Keep the last prompt_length tokens of longer prompts, as published; otherwise a prompt "
        "over its budget is an error (in recipe tracerl it is left out; either way it is counted).",
    )


@dataclasses.dataclass(frozen=True)
class ModelSettings(Settings):
    """The denoiser."""

    path: str | None = setting(
        "GSAI-ML/LLaDA-8B-Instruct",
        "A shipped model (such as sudoku), a local Hugging Face or Orbax directory, or a hub name.",
    )
    dtype: DType = setting("bfloat16", "Type of activations and matrix products.")
    param_dtype: DType = setting("bfloat16", "Type of the weights.")

    @property
    def quantization(self) -> str | None:
        """Type of the layers' matrices, where they have one of their own."""
        return None

    @property
    def remat(self) -> bool:
        """Whether updates compute the activations of layers again to save memory."""
        return False


@dataclasses.dataclass(frozen=True)
class TrainSettings(Settings):
    """The length of training."""

    steps: int = setting(1000, "Training steps of the whole run.", ge=1, le=MAX_INT)


@dataclasses.dataclass(frozen=True)
class EvaluationSettings(Settings):
    """Settings of evaluations: policies, problems, and what the report shows."""

    is_exempt: ClassVar[bool] = True

    after_training: bool = setting(
        False, "Evaluate the trained policy or denoiser, and those of policies, after training."
    )
    every: int = setting(
        0,
        "Training steps between measurements of policies with the denoiser as it is, into the "
        "metrics (eval_accuracy, eval_nfe); 0 for none. For recipes that train denoisers.",
        ge=0,
        le=MAX_INT,
    )
    split: Literal["train", "validation", "test"] = setting("test", "The split that is measured.")
    prompt_style: Literal["training", "evaluation"] = setting(
        "evaluation", "Wording of prompts; the published experiments have two."
    )
    num_problems: int = setting(
        0,
        "Problems of the split, its first ones; 0 for all (1,024 of tasks that generate them).",
        ge=0,
        le=MAX_INT,
    )
    truncate_prompts: bool = setting(
        False,
        "Cut prompts to task.prompt_length; otherwise they get the room that the longest needs.",
    )
    batch_size: int = setting(
        128, "Problems in the running batch; one that is done makes room for the next.", ge=1
    )
    block_lengths: tuple[int, ...] = setting(
        (32, 256), "Block lengths in tokens; 0 for the whole canvas.", ge=0
    )
    axes: tuple[str, ...] = setting(
        (),
        "Further things to vary, as KEY=A|B: models, tasks, canvas lengths (see "
        "docs/evaluation.md); all combinations are measured, into one report.",
    )
    caches: tuple[str, ...] = setting(
        (), "Caches of the rollouts, each measured; empty for that of rollout.cache."
    )
    stop_at_end: bool = setting(
        False,
        "End a row with the block that holds the end of its text; later positions stay masked.",
    )
    policies: tuple[str, ...] = setting(
        (
            "random:tokens_per_step=1|2|4|8",
            "left_to_right:tokens_per_step=1|2|4|8",
            "top_confidence:tokens_per_step=1|2|4|8",
            "margin:tokens_per_step=1|2|4|8",
            "threshold:threshold=0.1..0.9/0.05|0.925|0.95|0.97|0.98|0.99|0.995|0.999",
            "factor:factor=0.05|0.1|0.2|0.3|0.4|0.5|0.6|0.75|1.0|1.25|1.5|2.0|3.0",
            "entropy_bounded:gamma=0.01|0.02|0.05|0.1|0.2|0.3|0.4|0.5|0.75|1.0|1.5|2.0|3.0",
        ),
        "Policies as name:setting=value: a heuristic, or learned:DIR for a trained policy; several "
        "settings as a|b|c or low..high/step, one block length as a trailing @32.",
    )
    shipped: tuple[str, ...] = setting(
        (), "Names of policies that ship with the package, or patterns of names (sudoku-*@16)."
    )
    trained: tuple[str, ...] = setting(
        ("temperature=1.0",), "Test-time modes of trained and shipped policies."
    )
    seeds: tuple[int, ...] = setting(
        (0,), "Seeds of random policies; deterministic ones are measured once.", ge=0, lt=2**32
    )
    validation_problems: int = setting(
        0,
        "Problems of the validation split on which heuristic settings are chosen; 0 for none.",
        ge=0,
        le=MAX_INT,
    )
    examples: int = setting(8, "Problems of the report's examples and trajectory viewer.", ge=0)
    viewer: tuple[str, ...] = setting(
        (),
        "Policies shown there, in the notation of policies; empty for the trained one, and the "
        "best at its speed.",
    )
    curves: tuple[str, ...] = setting(
        (), "Training runs whose curves the report shows: workdirs, metrics files, or patterns."
    )

    def check(self) -> None:
        self.require(bool(self.seeds), "seeds", "policies that draw need one", "Give at least one")
        lengths = bool(self.block_lengths)
        self.require(lengths, "block_lengths", "policies are measured at one", "Give at least one")
        self.require(
            not (self.after_training and self.axes),
            "axes",
            "after training there is one model and one task",
            "Leave it empty, and run jax_unmask.eval with it afterwards",
        )


@dataclasses.dataclass(frozen=True)
class RunSettings(Settings):
    """Settings of every run; those of a recipe are a subclass in its file.

    Attributes:
        rollout_key: key of the setting that limits the memory of rollouts; empty for none.
        update_key: the same of updates.
        lora_key: key of the group of low-rank adapters; empty where none can be trained.
    """

    rollout_key: ClassVar[str] = ""
    update_key: ClassVar[str] = ""
    lora_key: ClassVar[str] = ""

    recipe: str = setting("", "Way of training: its name, or the import path of one of your own.")
    seed: int = setting(0, "Seed of everything random.", ge=0, lt=2**32)
    task: TaskSettings = TaskSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    mesh: MeshSettings = MeshSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    watch: WatchSettings = WatchSettings()
    log: LogSettings = LogSettings()
    eval: EvaluationSettings = EvaluationSettings()

    training_only: ClassVar[tuple[str, ...]] = ("train", "optimizer")
    """Keys, or groups of keys, that evaluations do not read; they have their defaults there.

    The defaults must go with any values of the other keys.
    """

    @property
    def sampling(self) -> RolloutSettings:
        """The rollouts of an evaluation, but for block length, cache and end of texts."""
        raise NotImplementedError

    def sampling_of(self, family: str) -> RolloutSettings:
        """`sampling` with the filters of tokens as a denoiser's family has them."""
        del family
        return self.sampling

    @property
    def rows(self) -> int:
        """Rows of a training step over all devices."""
        raise NotImplementedError

    @property
    def each(self) -> tuple[Any, ...]:
        """The settings of each environment of the training, as if there were no other."""
        return (self,)

    def naming(self, index: int) -> contextlib.AbstractContextManager[None]:
        """Names an environment, by its place in `each`, in mistakes of settings of its own."""
        del index
        return contextlib.nullcontext()

    @property
    def policy_name(self) -> str:
        """Name in tables of the policy that is trained, and not told how to act."""
        return "policy"

    @property
    def rows_at_once(self) -> int:
        """Rows that are rolled out at one time, over all devices; 0 without rollouts."""
        return 0

    @property
    def rows_per_prompt(self) -> int:
        """Rows of a training step that have the same prompt."""
        return 1

    @property
    def states_at_once(self) -> int:
        """Sequences whose activations an update of the denoiser keeps at one time; 0 for none."""
        return 0

    def check_devices(self) -> None:
        """Raises a `SettingError` unless the mesh fits the devices, and rows divide among them."""
        self.check_spread(placements.from_config(self))

    def check_spread(self, placement: Placement) -> None:
        """Raises a `SettingError` unless rows divide among the devices; see `require_spread`."""

    def require_spread(
        self, placement: Placement, key: str, count: int, what: str, by: int | None = None
    ) -> None:
        """Raises a `SettingError` unless a number of rows divides among devices, or processes.

        Args:
            placement: the devices.
            key: key of the number, or of what it follows from.
            count: the number.
            what: what is counted, for the message.
            by: in how many shards; by default in those of the mesh.
        """
        shards = placement.shards if by is None else by
        mesh = self.mesh
        other = f"another mesh (data={mesh.data}, fsdp={mesh.fsdp or 1}, tensor={mesh.tensor})"
        among = f"mesh.data x mesh.fsdp = {shards} shards of a batch"
        if placement != placements.from_config(self):
            among = f"the {shards} shards of the batch of a rollout"
            keys = f"rollout_fsdp={mesh.rollout_fsdp}, rollout_tensor={mesh.rollout_tensor}"
            other = f"another mesh.rollout_... ({keys})"
        if by is not None:
            among = f"{by} processes that read data"
        self.require(
            count % shards == 0,
            key,
            f"{what} do not divide among {among}",
            f"Give a multiple, or {other}",
        )
