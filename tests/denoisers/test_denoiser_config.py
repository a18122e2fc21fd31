"""Validation of `DenoiserConfig`, and LLaDA's `config.json`."""

import dataclasses
import json
import pathlib
import re

import jax.numpy as jnp
import pytest

from jax_unmask.denoisers import families
from jax_unmask.denoisers.families import llada

CONFIG_JSON = pathlib.Path(__file__).parents[1] / "fixtures" / "llada" / "config.json"


@pytest.fixture
def fields():
    return json.loads(CONFIG_JSON.read_text())


@pytest.fixture
def config(fields):
    return llada.config_from_hf(fields)


class TestDenoiserConfig:
    def test_is_hashable_and_equal_by_value(self, config):
        a = dataclasses.replace(config, dtype="bfloat16")
        b = dataclasses.replace(config, dtype=jnp.bfloat16)
        assert a == b
        assert hash(a) == hash(b)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"num_layers": 0}, "num_layers=0 "),
            ({"hidden_size": 64.0}, "hidden_size=64.0 .*integer"),
            ({"num_heads": True}, "num_heads=True .*integer"),
            ({"num_kv_heads": 3}, "num_heads=4 is not .*num_kv_heads=3"),
            ({"head_dim": 15}, "head_dim=15"),
            ({"rope_theta": 0.0}, "rope_theta=0.0"),
            ({"norm_eps": float("nan")}, "norm_eps=nan"),
            ({"mask_token_id": 320}, "mask_token_id=320"),
            ({"mask_token_id": None}, "mask_token_id=None .*integer"),
            ({"mask_token_id": 311}, "eos_token_id=311 is also mask_token_id"),
            ({"bos_token_id": -1}, "bos_token_id=-1"),
            ({"dtype": "int32"}, "dtype=int32 .*floating"),
        ],
    )
    def test_refuses(self, config, change, message):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(config, **change)


class TestLLaDAConfig:
    def test_reads_every_size(self, config):
        assert dataclasses.astuple(config)[:16] == (
            *("llada", 320, 64, 2, 4, 4, 16, 160, 500_000.0, 1e-5, 256, False),
            *(318, 311, 311, None),
        )

    def test_round_trip(self, config, fields):
        written = families.to_hf(config)
        assert llada.config_from_hf(written) == config
        assert fields.items() <= written.items()

    def test_null_fields_mean_what_the_published_class_makes_of_them(self, fields):
        fields |= {"mlp_hidden_size": None, "embedding_size": None, "pad_token_id": None}
        fields |= {"n_kv_heads": None, "multi_query_attention": True, "eos_token_id": 7}
        config = llada.config_from_hf(fields)
        assert config.intermediate_size == 4 * 64
        assert config.vocab_size == 320
        assert config.pad_token_id == 7
        assert config.num_kv_heads == 1

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("block_type", "sequential"),
            ("scale_logits", True),
            ("include_qkv_bias", True),
            ("rope_full_precision", False),
            ("rope_scaling", {"type": "linear", "factor": 2.0}),
            ("residual_dropout", 0.1),
            ("architectures", ["LLaDAMoEModelLM"]),
        ],
    )
    def test_refuses_what_is_not_implemented(self, fields, name, value):
        with pytest.raises(ValueError, match=rf"config\.json: {name}={re.escape(repr(value))} "):
            llada.config_from_hf(fields | {name: value})

    @pytest.mark.parametrize("name", ["d_model", "rope_theta", "weight_tying", "block_type"])
    def test_takes_nothing_from_defaults(self, fields, name):
        del fields[name]
        with pytest.raises(ValueError, match=f"config.json: {name} is missing"):
            llada.config_from_hf(fields)

    def test_refuses_impossible_shapes(self, fields):
        with pytest.raises(ValueError, match=r"d_model=66 .* n_heads=4"):
            llada.config_from_hf(fields | {"d_model": 66})
        with pytest.raises(ValueError, match=r"embedding_size=300 .*vocab_size=320"):
            llada.config_from_hf(fields | {"embedding_size": 300})

    def test_cannot_write_other_head_widths(self, config):
        with pytest.raises(ValueError, match="head_dim=32 with num_heads=4"):
            llada.config_to_hf(dataclasses.replace(config, head_dim=32))
