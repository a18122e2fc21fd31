"""Settings: what is declared is what configs hold, what is checked and what is documented."""

import ast
import dataclasses
import itertools
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from jax_unmask import settings
from jax_unmask.settings import ConfigError, SettingError, Settings, given, setting


@dataclasses.dataclass(frozen=True)
class Reward(Settings):
    learner: Any = given()
    kind: Literal["multiplicative", "additive"] = setting("multiplicative", "Form.")
    alpha: float = setting(1, "Price of a forward.", ge=0, lt=1000)
    scale: float = setting(1.0, "Scale.", gt=0)
    length: int = setting(16, "Length.", ge=1)
    block: int = setting(4, "Block length.", ge=1)
    seeds: tuple[int, ...] = setting((0,), "Seeds.", ge=0)
    path: str | None = setting(None, "Path.")
    cache: tuple[str, ...] | None = setting(
        "none", "Cache.", parse=lambda text: None if text == "none" else (str(int(text)),)
    )

    def check(self) -> None:
        self.require_divides("block", "length")


@dataclasses.dataclass(frozen=True)
class Log(Settings):
    is_exempt = True
    every: int = setting(1, "Steps between lines.", ge=1)


@dataclasses.dataclass(frozen=True)
class Whole(Settings):
    seed: int = setting(0, "Seed.", ge=0, lt=2**32)
    slots: int = setting(0, "Slots.", ge=0, exempt=True)
    reward: Reward = Reward(alpha=3)
    log: Log = Log()

    def check(self) -> None:
        self.require(self.seed != 13, "seed", "it is unlucky with `reward.alpha`", "Change it")


def edited(key: str, value: Any) -> Any:
    """The config with one key set, past ml_collections' own checks."""
    config = settings.to_config(Whole())
    *groups, name = key.split(".")
    inner = config
    for group in groups:
        if group not in inner:
            inner[group] = type(config)()
        inner = inner[group]
    with inner.ignore_type():
        inner[name] = value
    return config


def test_configs_hold_what_is_declared_and_are_turned_back():
    config = settings.to_config(Whole())
    assert config.reward.alpha == 3.0
    assert isinstance(config.reward.alpha, float)
    assert "learner" not in config.reward
    assert config.reward.path is None
    assert config.reward.get_type("path") is str
    assert config.reward.cache == "none"
    assert settings.from_config(Whole(), config) == Whole()
    changed = settings.from_config(Whole(), edited("reward.alpha", 2))
    assert changed == Whole(reward=Reward(alpha=2))
    assert settings.flat(changed)["reward.alpha"] == 2.0


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("seed", 1.5, ["config.seed = 1.5"]),
        ("seed", True, ["config.seed = True", "bool"]),
        ("seed", None, ["config.seed = None"]),
        ("seed", -1, ["config.seed = -1", "at least 0"]),
        ("seed", 2**32, ["config.seed = 4294967296"]),
        ("seed", 10**400, ["config.seed = 1000", "32 bits"]),
        ("slots", 2**20 + 1, ["config.slots = 1048577", "at most 1048576"]),
        ("reward.scale", 1e-40, ["config.reward.scale = 1e-40", "round it to 0"]),
        ("slots", 2**40, ["config.slots"]),
        ("reward.alpha", float("nan"), ["config.reward.alpha = nan"]),
        ("reward.alpha", float("inf"), ["config.reward.alpha = inf"]),
        ("reward.alpha", "1", ["config.reward.alpha = '1'", "float"]),
        # As float32 they are 1000, infinite and 0.
        ("reward.alpha", 1000 - 1e-9, ["below 1000"]),
        ("reward.scale", 1e300, ["config.reward.scale = 1e+300"]),
        ("reward.scale", 1e-300, ["above 0"]),
        ("reward.seeds", (1, -1), ["config.reward.seeds[1] = -1"]),
        ("reward.seeds", 1, ["config.reward.seeds = 1", "tuple of int"]),
        ("reward.kind", "aditive", ["config.reward.kind = 'aditive'", "'additive'"]),
        ("reward.cache", "x", ["config.reward.cache = 'x'", "invalid literal"]),
        ("reward.block", 5, ["config.reward.block = 5", "config.reward.length = 16", "15 or 20"]),
        ("seed", 13, ["config.seed = 13", "config.reward.alpha"]),
        ("reward", 3, ["config.reward = 3", "kind, alpha"]),
        ("seed", {"a": 1}, ["config.seed = {'a': 1}"]),
        ("sed", 1, ["config.sed = 1", "Did you mean seed?"]),
        ("rewrd.alpha", 1, ["config.rewrd = {'alpha': 1}", "Did you mean reward?"]),
        ("reward.blok", 1, ["config.reward.blok", "Did you mean reward.block?"]),
        ("log.alpha", 1, ["config.log.alpha", "Did you mean reward.alpha?"]),
        ("log.zzz", 1, ["config.log.zzz", "every"]),
    ],
)
def test_mistakes_name_the_full_key_the_value_and_a_remedy(key, value, words):
    with pytest.raises(ConfigError) as caught:
        settings.from_config(Whole(), edited(key, value))
    for word in words:
        assert word in str(caught.value)


def test_a_missing_key_is_a_mistake():
    config = settings.to_config(Whole())
    del config.reward["block"]
    with pytest.raises(ConfigError, match=r"config\.reward\.block = None.*default is 4"):
        settings.from_config(Whole(), config)


def test_components_check_their_own_values():
    for changes in ({"alpha": -1.0}, {"kind": "other"}, {"block": 3}, {"seeds": (-1,)}):
        with pytest.raises(SettingError, match=f"^{next(iter(changes))}"):
            Reward(**changes)
    assert Reward(seeds=[1, 2]).seeds == (1, 2)
    assert settings.values_of(Whole().log, Log) == {"every": 1}


def test_exempt_keys_are_declared():
    assert [each.key for each in settings.declared(Whole()) if each.is_exempt] == [
        "slots",
        "log.every",
    ]


def test_help_and_reference_come_from_the_declaration():
    assert "--config.reward.alpha: Price of a forward." in settings.help_text(Whole())
    row = "| `reward.alpha` | `3.0` | float, at least 0 and below 1000 | Price of a forward. |"
    assert row in settings.reference(settings.declared(Whole()))


def test_is_light():
    code = "import sys, jax_unmask.settings; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# Values that say "none", "all" or "not", whatever they are for.
NEUTRAL = (None, False, True, 0, 1, -1, "", ())
# Of other things, which happen to have the same name and default.
OTHERS = {"bench.py: policy", "generator.py: batch_size"}


def literal(node: ast.AST) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def defaults(node: ast.AST) -> Iterator[tuple[str, Any]]:
    """Names and literal defaults of a function's parameters, or of an argument of a command."""
    if isinstance(node, ast.FunctionDef):
        given, last = node.args, [*node.args.posonlyargs, *node.args.args]
        last = last[len(last) - len(given.defaults) :]
        every = (
            *zip(last, given.defaults, strict=True),
            *zip(given.kwonlyargs, given.kw_defaults, strict=True),
        )
        yield from ((each.arg, literal(value)) for each, value in every if value is not None)
    elif isinstance(node, ast.Call) and node.args:
        name, values = literal(node.args[0]), [k.value for k in node.keywords if k.arg == "default"]
        if "DEFINE_" in ast.unparse(node.func):
            values = node.args[1:2]
        if isinstance(name, str):
            yield from ((name.removeprefix("--"), literal(value)) for value in values)


def test_no_argument_repeats_the_default_of_a_setting():
    package = pathlib.Path(settings.__file__).parent
    modules = {path: ast.parse(path.read_text("utf-8")) for path in sorted(package.rglob("*.py"))}
    nodes = {path: list(ast.walk(module)) for path, module in modules.items()}
    declared_as = {
        (each.target.id, literal(each.value.args[0]))
        for node in itertools.chain(*nodes.values())
        if isinstance(node, ast.ClassDef)
        for each in node.body
        if isinstance(each, ast.AnnAssign)
        and ast.unparse(each.value or each).startswith("setting(")
    }
    assert ("gen_length", 256) in declared_as
    found = {
        f"{path.name}: {name}"
        for path in modules
        for node in nodes[path]
        for name, value in defaults(node)
        if value not in NEUTRAL and (name, value) in declared_as
    }
    assert found == OTHERS, "use the default of the class that declares the setting"
