"""Recipe "sft": a denoiser learns to fill in masked responses; with what `state_sft` shares."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jax_unmask import denoisers
from jax_unmask.denoisers import number_embeddings, word_level
from jax_unmask.denoisers.flops import forward_flops
from jax_unmask.denoisers.sharding import RULES, check_mesh
from jax_unmask.environment.bundle import (
    Bundle,
    describe,
    load_bundle,
    load_denoiser_config,
    load_task,
)
from jax_unmask.environment.settings import DType, ModelSettings, RunSettings, TaskSettings
from jax_unmask.learners.engine import TrainState
from jax_unmask.learners.optim import OptimizerSettings
from jax_unmask.learners.sft import Masking, SftBatch, SftLearner
from jax_unmask.recipes import base
from jax_unmask.rollout import Prompts, RolloutSettings
from jax_unmask.runtime import placement as placements
from jax_unmask.runtime import streams
from jax_unmask.runtime.placement import Placement
from jax_unmask.runtime.progress import Timer
from jax_unmask.settings import ConfigError, Settings, setting, setting_of
from jax_unmask.tasks import data
from jax_unmask.tasks.generated import ClosedVocabulary


@dataclasses.dataclass(frozen=True)
class ModelFromScratch(ModelSettings):
    """The denoiser that is trained: given weights, or random ones of this shape."""

    path: str | None = setting(
        None, "Continue from these weights; None for random ones of the shape below."
    )
    dtype: DType = setting_of(ModelSettings, "dtype", default="float32")
    param_dtype: DType = setting_of(ModelSettings, "param_dtype", default="float32")
    hidden_size: int = setting(64, "Width.", ge=1)
    num_layers: int = setting(3, "Layers.", ge=1, le=1000)
    num_heads: int = setting(4, "Attention heads; a divisor of the width.", ge=1)
    num_kv_heads: int = setting(4, "Heads of keys and values; a divisor of num_heads.", ge=1)
    intermediate_size: int = setting(176, "Width of the MLP.", ge=1)
    rope_theta: float = setting(10000.0, "Base of the rotary frequencies.", gt=0, le=1e12)
    norm_eps: float = setting(1e-5, "Epsilon of every RMSNorm.", gt=0, le=1)
    number_embeddings: bool = setting(
        False, "Embeddings of number tokens begin with the numbers' values, not at random."
    )
    max_length: int = setting(
        0,
        "Most tokens of a prompt and a canvas that the denoiser takes later; 0 for those of this "
        "run.",
        ge=0,
        le=2**18,
    )
    attention_block: int = setting(
        0,
        "Block-causal attention in blocks of so many positions (for recipe state_sft); 0 for full "
        "attention.",
        ge=0,
    )
    logits_shift: bool = setting(
        False,
        "The head scores the next token, as in models made from causal ones (family dream): what "
        "is learned causally serves the masked model too.",
    )

    def check(self) -> None:
        self.require_divides("num_heads", "hidden_size")
        self.require_divides("num_kv_heads", "num_heads")
        self.require(
            self.hidden_size // self.num_heads % 2 == 0,
            "hidden_size",
            f"heads are {self.hidden_size // self.num_heads} wide; rotary embeddings turn pairs",
            "Give an even multiple of `num_heads`",
        )
        self.require(
            not (self.logits_shift and self.attention_block),
            "logits_shift",
            "no family has shifted logits and block attention (`attention_block`)",
            "Set False, or `attention_block` = 0",
        )


@dataclasses.dataclass(frozen=True)
class DataSettings(Settings):
    """The batches of supervised training."""

    batch_size: int = setting(256, "Rows of a batch, over all devices.", ge=1)
    gen_length: int = setting_of(RolloutSettings, "gen_length", default=16)


@dataclasses.dataclass(frozen=True)
class SupervisedSettings(RunSettings):
    """Settings of supervised training of denoisers."""

    update_key: ClassVar[str] = "data.batch_size"

    task: TaskSettings = TaskSettings(name="sudoku", truncate_prompts=False)
    model: ModelFromScratch = ModelFromScratch()
    data: DataSettings = DataSettings()
    optimizer: OptimizerSettings = OptimizerSettings(
        lr=2e-3, final_fraction=0.01, b2=0.98, weight_decay=0.01, grad_clip=1.0
    )
    export: str | None = base.export_setting()

    def check(self) -> None:
        base.check_export(self.export)
        base.check_schedule(self.optimizer, self.train.steps)
        self.require(
            self.model.max_length == 0 or self.model.max_length >= self.length,
            "model.max_length",
            f"a prompt and a canvas of this run have {self.length} tokens",
            "Raise it, or give 0",
        )

    def check_spread(self, placement: Placement) -> None:
        what = f"its {self.rows} rows"
        for by in (placement.feeds, None):
            self.require_spread(placement, "data.batch_size", self.rows, what, by)

    @property
    def length(self) -> int:
        """Tokens of a prompt and a canvas."""
        return self.task.prompt_length + self.data.gen_length

    @property
    def sampling(self) -> RolloutSettings:
        return RolloutSettings(self.data.gen_length, self.data.gen_length)

    @property
    def rows(self) -> int:
        return self.data.batch_size

    @property
    def states_at_once(self) -> int:
        return self.rows


def starting_bundle(config: SupervisedSettings, workdir: pathlib.Path) -> Bundle:
    """The denoiser that training starts from, with its tokenizer and task.

    Without `config.model.path` it has no parameters yet, see `random_params`; the tokenizer is then
    a word-level one over the task's own vocabulary, saved in the workdir.

    Raises:
        ConfigError: the task has no vocabulary of its own, or something does not fit.
    """
    if config.model.path is None:
        bundle = _bundle_from_scratch(config, workdir / "tokenizer")
    else:
        placement = placements.from_config(config)
        bundle = load_bundle(config, weights=placement)
        bundle = dataclasses.replace(bundle, placement=placement)
    return bundle


def _bundle_from_scratch(config: SupervisedSettings, directory: pathlib.Path) -> Bundle:
    task, placement, model = load_task(config), placements.from_config(config), config.model
    if not isinstance(task, ClosedVocabulary):
        raise ConfigError(
            "model.path",
            None,
            f"task {config.task.name!r} has no closed vocabulary to start a model from",
            "Give a pretrained model, with its tokenizer",
        )
    directory.mkdir(parents=True, exist_ok=True)
    # All processes write the same; none may read what another is about to replace.
    special = word_level.save_word_level(directory, task.vocabulary)
    placement.meet("tokenizer")
    blocks, shifts = model.attention_block, model.logits_shift
    shape = denoisers.DenoiserConfig(
        # Families whose files can hold these shapes.
        family="sdar" if blocks else "dream" if shifts else "llada",
        qk_norm=bool(blocks),
        qkv_bias=shifts,
        logits_shift=shifts,
        attention_block=blocks or None,
        vocab_size=special["vocab_size"],
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.hidden_size // model.num_heads,
        intermediate_size=model.intermediate_size,
        rope_theta=model.rope_theta,
        norm_eps=model.norm_eps,
        max_length=model.max_length or config.length,
        tie_embeddings=False,
        mask_token_id=special["mask"],
        eos_token_id=special["eos"],
        pad_token_id=special["pad"],
        bos_token_id=special["bos"],
        dtype=model.dtype,
        param_dtype=model.param_dtype,
    )
    check_mesh(shape, placement.mesh)
    tokenizer = denoisers.load_tokenizer(directory)
    return Bundle(denoisers.Denoiser(shape), None, tokenizer, task, placement=placement)


def random_params(config: SupervisedSettings, bundle: Bundle) -> denoisers.Params:
    """Initial parameters of a denoiser that starts from scratch."""
    root, task = streams.root(config.seed), bundle.task

    def make() -> denoisers.Params:
        key = streams.stream(root, "init")
        params = denoisers.init_params(bundle.denoiser.config, key)
        if not (config.model.number_embeddings and isinstance(task, ClosedVocabulary)):
            return params
        words = [token for token in task.vocabulary if token.strip().isdecimal()]
        numbers = {bundle.tokenizer.encode(word)[0]: int(word) for word in words}
        return number_embeddings.with_values(params, numbers, streams.stream(root, "numbers"))

    return bundle.placement.make(make, rules=RULES)


BuildLearner = Callable[[Any, denoisers.Denoiser], Any]


def check_supervised(config: Any, workdir: pathlib.Path, build_learner: BuildLearner) -> Bundle:
    """`Recipe.check` of a supervised recipe."""
    if config.model.path is None:
        bundle = _bundle_from_scratch(config, workdir / "tokenizer")
    else:
        bundle = describe(config)
        bundle = dataclasses.replace(bundle, placement=placements.from_config(config))
    _check_denoiser(config, bundle.denoiser.config, build_learner)
    base.check_examples(config, bundle, gen_length=config.data.gen_length)
    return bundle


def _check_denoiser(
    config: Any, shape: denoisers.DenoiserConfig, build_learner: BuildLearner
) -> None:
    base.check_fits(shape, config.task.prompt_length, config.data.gen_length)
    build_learner(config, denoisers.Denoiser(shape))


class Supervised(base.Recipe):
    """A denoiser in training on given responses: its weights, its learner, its batches.

    It starts from random weights, or goes on from given ones.

    Args:
        config: the settings.
        workdir: receives `tokenizer/` at the beginning if the weights are random, and at the end
            `model/`, unless `config.export` names another directory.
        build_learner: makes the learner of the settings and a denoiser, and refuses what does not
            fit it.
        keeps_start: steps need the parameters that training starts from.
    """

    trains = ("denoiser",)

    def __init__(
        self,
        config: Any,
        workdir: pathlib.Path,
        build_learner: BuildLearner,
        *,
        keeps_start: bool = False,
    ) -> None:
        if config.model.path is not None:  # Before the weights: they take longest.
            _check_denoiser(config, load_denoiser_config(config), build_learner)
        self._config, self._bundle = config, starting_bundle(config, workdir)
        self._learner = build_learner(config, self._bundle.denoiser)
        self._keeps_start = keeps_start

    def init(self) -> TrainState:
        params, placement = self._start(), self._bundle.placement
        donate = () if self._keeps_start else (0,)
        key = streams.training_key(self._config.seed)
        return placement.make(self._learner.init, params, key, rules=RULES, donate=donate)

    def like(self) -> TrainState:
        bundle, key = self._bundle, streams.training_key(self._config.seed)
        if bundle.params is not None or self._keeps_start:
            params = self._start()
        else:
            params = denoisers.abstract_params(bundle.denoiser.config)
        return bundle.placement.like(self._learner.init, params, key, rules=RULES)

    def _start(self) -> denoisers.Params:
        """The parameters that training starts from; the recipe keeps them only if steps do."""
        params = self._bundle.params
        if params is None:
            params = random_params(self._config, self._bundle)
        kept = params if self._keeps_start else None
        self._bundle = dataclasses.replace(self._bundle, params=kept)
        return params

    def data(self) -> data.BatchIterator:
        of, bundle = self._config.data, self._bundle
        return base.training_batches(
            self._config, bundle, bundle.placement, of.batch_size, gen_length=of.gen_length
        )

    def current(self, state: TrainState) -> Bundle:
        """The denoiser as it is, its moving average if there is one."""
        params = state.params if state.ema is None else state.ema
        return dataclasses.replace(self._bundle, params=params)

    def finish(self, state: TrainState, workdir: pathlib.Path) -> Bundle:
        return base.export_denoiser(self._config, self.current(state), workdir)


def batch_shapes(config: SupervisedSettings, placement: Placement) -> tuple[Prompts, Any]:
    """Prompts and canvases of a batch."""
    prompts, _ = base.prompt_shapes(placement, config.rows, config.task.prompt_length)
    return prompts, jax.ShapeDtypeStruct((config.rows, config.data.gen_length), jnp.int32)


def supervised_blueprint(
    shape: denoisers.DenoiserConfig,
    placement: Placement,
    learner: Any,
    batch: tuple[Any, ...],
    *,
    keeps_start: bool = False,
) -> base.Blueprint:
    """The step of a supervised learner on a batch."""
    weights = placement.parameters(denoisers.abstract_params(shape), RULES)
    state = jax.eval_shape(learner.init, weights, jax.random.key(0))
    state = placement.parameters(state, RULES)
    with placement.active():
        step = type(learner).step.lower(learner, state, *batch)
    frozen = {"denoiser as loaded": weights} if keeps_start else {}
    return base.Blueprint(
        {**frozen, "trained parameters and optimiser": state},
        batch,
        state.params,
        (base.TracedProgram("update", step),),
    )


def supervised_work(
    config: SupervisedSettings, shape: denoisers.DenoiserConfig, states: int = 1
) -> base.Work:
    """Matrix products of a step with so many states of each response."""
    length = config.data.gen_length
    forward = forward_flops(shape, config.task.prompt_length + length, length)
    return base.Work(0, 0.0, 3.0 * config.rows * states * forward)


@dataclasses.dataclass(frozen=True)
class SftSettings(SupervisedSettings):
    """Settings of `Sft`."""

    masking: Masking = Masking(max_weight=20.0)
    learner: SftLearner = SftLearner()

    training_only: ClassVar[tuple[str, ...]] = (
        *SupervisedSettings.training_only,
        *("masking", "learner"),
    )

    def check(self) -> None:
        super().check()
        self.require_divides("masking.suffix_block_length", "data.gen_length")
        self.require(
            self.model.attention_block == 0,
            "model.attention_block",
            "this recipe shows whole texts, whose finished blocks a block-causal model would see",
            "Set 0, or use recipe state_sft",
        )


def build_learner(config: SftSettings, denoiser: denoisers.Denoiser) -> SftLearner:
    """The learner of the denoiser.

    Raises:
        ConfigError: causal rows do not fit the denoiser.
    """
    family = denoiser.config.family
    if config.masking.causal_fraction and not denoiser.config.logits_shift:
        raise ConfigError(
            "masking.causal_fraction",
            config.masking.causal_fraction,
            f"logits of family {family!r} are not shifted, so a causal text would show each token "
            "to itself",
            "Set 0, or take a model of family 'dream' (`model.logits_shift` = True)",
        )
    optimizer = config.optimizer.build(config.train.steps)
    return dataclasses.replace(
        config.learner, denoiser=denoiser, optimizer=optimizer, masking=config.masking
    )


class Sft(Supervised):
    """Trains a denoiser on masked responses, from random weights or given ones."""

    metrics = ("loss", "masked_accuracy", "masked_fraction", "grad_norm")
    shown = ("loss", "masked_accuracy")
    defaults = SftSettings()

    @classmethod
    def check(cls, config: SftSettings, workdir: pathlib.Path) -> Bundle:
        return check_supervised(config, workdir, build_learner)

    def __init__(self, config: SftSettings, workdir: pathlib.Path) -> None:
        super().__init__(config, workdir, build_learner)

    def step(self, state: TrainState, batch: Any, timer: Timer) -> tuple[TrainState, base.Metrics]:
        placement, rows = self._bundle.placement, SftBatch(batch.prompts, batch.responses)
        if placement.mesh is not None:
            rows = placement.rows(rows)
        with timer.measure("update"), placement.active():
            return self._learner.step(state, rows)

    def flops(self, metrics: Mapping[str, float]) -> float:
        del metrics
        return self.work(self._config, self._bundle.denoiser.config).update

    @classmethod
    def blueprint(
        cls, config: SftSettings, shape: denoisers.DenoiserConfig, placement: Placement
    ) -> base.Blueprint:
        learner = build_learner(config, denoisers.Denoiser(shape))
        prompts, canvas = batch_shapes(config, placement)
        batch = SftBatch(prompts, placement.rows(canvas))
        return supervised_blueprint(shape, placement, learner, (batch,))

    @classmethod
    def work(
        cls, config: SftSettings, shape: denoisers.DenoiserConfig, nfe: int | None = None
    ) -> base.Work:
        del nfe
        return supervised_work(config, shape)
