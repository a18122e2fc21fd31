"""Any value of any setting either trains, or is refused at once with one message about its key."""

from __future__ import annotations

import contextlib
import math
import signal

import hypothesis
import pytest
from hypothesis import strategies as st

from jax_unmask import recipes
from jax_unmask.commands import train
from jax_unmask.recipes import policy_grpo, rollouts, sft, state_sft, tracerl
from jax_unmask.settings import ConfigError, Setting, declared

SECONDS = 10  # Until something would be compiled.
RECIPES = ("policy_grpo", "tracerl", "sft", "state_sft")
# One writes where it says; the other chooses the settings.
LEFT_OUT = ("export", "recipe")

_EDGES = (0, 1, -1, 2, 3, 7, 64, 1000, 10**5, 10**6, 2**31 - 1, 2**31, 10**11, 2**63, 10**400)
_FLOATS = (*map(float, _EDGES[:-1]), 0.5, 1e-300, 1e-30, 1e30, 1e300, math.inf, -math.inf, math.nan)
_TEXTS = ("", "x", "none", "None", "a=b", ":=", "\x00", "\x1b[31m", "../..", "/", "x" * 5000, "é|@")

_ANYTHING = (None, True, 1, 1.5, "x", (), (1, "x"), {"a": 1}, b"x")


class Compiled(Exception):
    """The values were accepted."""


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch):
    def stop(*arguments, **settings):
        raise Compiled

    monkeypatch.setattr(rollouts, "rollout", stop)
    monkeypatch.setattr(state_sft, "rollout", stop)
    for recipe in (policy_grpo.PolicyGrpo, tracerl.TraceRl, sft.Sft):
        monkeypatch.setattr(recipe, "init", stop)


def edges(each: Setting) -> list:
    """The choices of a setting, its bounds and their neighbours, and what is far outside."""
    bounds = [b for b in (each.ge, each.gt, each.le, each.lt) if b is not None]
    near = [each.kind(b + d) for b in bounds for d in (-1, 0, 1)] if each.kind is not str else []
    found = {bool: (), int: _EDGES, float: _FLOATS, str: _TEXTS}[each.kind]
    found = [*found, *near, *each.choices]
    return [(value,) for value in found] if each.is_tuple else found


def values(each: Setting) -> st.SearchStrategy:
    """Values of all kinds, mostly of the type of the setting."""
    own = {
        bool: st.booleans(),
        int: st.integers(),
        float: st.floats(),
        str: st.text(max_size=20),
    }[each.kind]
    typed = st.lists(own, max_size=3).map(tuple) if each.is_tuple else own
    known = st.sampled_from(edges(each) or [True, False])
    return st.one_of(typed, known, known, st.sampled_from(_ANYTHING))


@st.composite
def changes(draw):
    recipe = draw(st.sampled_from(RECIPES))
    settings = [s for s in declared(recipes.defaults(recipe)) if s.key not in LEFT_OUT]
    each = draw(st.sampled_from(settings))
    return recipe, each.key, draw(values(each))


@contextlib.contextmanager
def deadline(seconds):
    def stop(*_):
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempt(tiny_config, workdir, recipe, key, value):
    config = tiny_config(recipe)
    *groups, name = key.split(".")
    group = config
    for each in groups:
        group = group[each]
    with group.ignore_type(), group.unlocked():
        group[name] = value
    with deadline(SECONDS), contextlib.suppress(Compiled):
        try:
            train.train(config, workdir)
        except (ValueError, OSError, ImportError) as error:
            assert not isinstance(error, TimeoutError)
            # The full key of one that does not go with others; paths name themselves.
            named = {key, key.partition(".")[0], key.rpartition(".")[2], str(value)}
            assert isinstance(error, ConfigError) or any(n in str(error) for n in named), error


def fuzz(tiny_config, tmp_path, count):
    numbers = iter(range(10**6))

    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=count < 100,
        phases=[hypothesis.Phase.generate],  # A counterexample is short enough as it is.
    )
    @hypothesis.given(changes())
    def check(change):
        attempt(tiny_config, tmp_path / str(next(numbers)), *change)

    check()


def test_any_value(tiny_config, tmp_path):
    fuzz(tiny_config, tmp_path, 25)


@pytest.mark.slow
def test_many_values(tiny_config, tmp_path):
    fuzz(tiny_config, tmp_path, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_setting_at_its_edges(tiny_config, tmp_path, recipe):
    others = RECIPES[: RECIPES.index(recipe)]
    known = {each.key for other in others for each in declared(recipes.defaults(other))}
    tried, wrong = 0, []
    for each in declared(recipes.defaults(recipe)):
        if each.key in known or each.key in LEFT_OUT:
            continue
        for value in (*edges(each), *_ANYTHING):
            tried += 1
            try:
                attempt(tiny_config, tmp_path / str(tried), recipe, each.key, value)
            except (Exception, AssertionError) as error:
                wrong.append((each.key, value, repr(error)[:200]))
    print(f"{recipe}: {tried} values")
    assert not wrong
