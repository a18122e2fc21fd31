"""Models and tokenizers as people have them: newer fields, redundant tensors, odd templates."""

import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import same
from safetensors.numpy import load_file, save_file

import tiny
from jax_unmask import denoisers
from jax_unmask.denoisers import diffusion_gemma, families
from jax_unmask.denoisers.pretrained import read_config
from jax_unmask.generation.answers import MaskedWriter
from jax_unmask.generation.generator import Generator
from jax_unmask.rollout import RolloutSettings
from jax_unmask.shipped import assets

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
MASKS = {"llada_moe": 314, "llada2_moe": 316}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def fields_of(name):
    return json.loads((FIXTURES / name / "config.json").read_text())


class TestConfigs:
    @pytest.fixture(params=["llada", "dream", "sdar", "llada_moe", "llada2_moe"])
    def name(self, request):
        return request.param

    def read(self, name, changes, without=()):
        fields = {k: v for k, v in fields_of(name).items() if k not in without}
        fields |= {"mask_token_id": MASKS[name]} if name in MASKS else {}
        return families.of(fields).config_from_hf(fields | changes)

    def test_rotary_settings_in_their_nested_form(self, name):
        """As transformers 5 writes them, and with the name between both."""
        rope = {"rope_type": "default", "rope_theta": 123456.0}
        expected = self.read(name, {"rope_theta": 123456.0, "rope_scaling": None})
        for field in ("rope_parameters", "rope_scaling"):
            for value in (rope, {"full_attention": rope}):
                without = ("rope_theta", "rope_scaling")
                assert self.read(name, {field: value}, without) == expected

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, "disagrees with"),
            ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_parameters=.*yarn"),
            ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling=.*linear"),
            ({"rope_scaling": {"factor": 2.0}}, "only rope_type='default'"),
            ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types="),
            ({"quantization_config": {"quant_method": "awq"}}, "quantization_config=.*float32"),
            ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ],
    )
    def test_other_computations_are_refused(self, name, changes, message):
        with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
            self.read(name, changes)

    def test_several_ends_of_a_text(self, name):
        eos = self.read(name, {}).eos_token_id
        assert self.read(name, {"eos_token_id": [eos, 5]}).eos_token_id == eos

    def test_partial_rotations(self):
        width = self.read("llada2_moe", {}).head_dim
        nested = {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}}
        without = ("rope_theta", "partial_rotary_factor", "rope_scaling")
        assert self.read("llada2_moe", nested, without).rotary_dim == width // 4
        given = self.read("llada2_moe", {"rotary_dim": 2}, ("partial_rotary_factor",))
        assert given.rotary_dim == 2
        with pytest.raises(ValueError, match="rotary_dim=2 disagrees with partial_rotary_factor"):
            self.read("llada2_moe", {"rotary_dim": 2})

    def test_experts_by_their_newer_name(self):
        fields = fields_of("sdar") | {"model_type": "sdar_moe", "num_experts_per_tok": 2}
        fields |= {"moe_intermediate_size": 16, "norm_topk_prob": True, "num_local_experts": 6}
        assert families.of(fields).config_from_hf(fields).experts.num_experts == 6

    def test_a_field_that_is_missing_where_its_class_has_a_default(self):
        for name in ("dream", "sdar", "llada_moe", "llada2_moe"):
            without = self.read(name, {}, ("tie_word_embeddings",))
            assert without == self.read(name, {"tie_word_embeddings": None})
            assert without == self.read(name, {"tie_word_embeddings": False})
        for field in ("n_group", "topk_group", "partial_rotary_factor"):  # Of LLaDA2; not ours.
            with pytest.raises(ValueError, match=f"{field} is missing"):
                self.read("llada2_moe", {}, (field,))

    @pytest.mark.parametrize(("given", "cap"), [([], 30.0), ([5.0], 5.0), ([None], None)])
    def test_a_null_that_differs_from_a_missing_field(self, given, cap):
        fields = fields_of("diffusion_gemma")
        fields["text_config"].pop("final_logit_softcapping", None)
        for value in given:
            fields["text_config"]["final_logit_softcapping"] = value
        config = diffusion_gemma.config.config_from_hf(fields)
        assert config.softcap == cap
        model = diffusion_gemma.DiffusionGemma(config)
        table = np.full((config.vocab_size, config.hidden_size), 2.0, np.float32)
        params = {"params": {"embedding": table}}
        hidden = np.ones(config.hidden_size, np.float32)
        plain = 2.0 * config.hidden_size
        found = model.apply(params, hidden, method="logits")[0]
        expected = plain if cap is None else cap * np.tanh(plain / cap)
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    def test_layers_of_a_diffusion_gemma_with_padded_numbers(self):
        """As transformers writes them for models of ten layers and more."""
        fields = fields_of("diffusion_gemma")
        expected = diffusion_gemma.config.config_from_hf(fields)
        text = fields["text_config"]
        text["per_layer_config"] = {f"{int(k):02}": v for k, v in text["per_layer_config"].items()}
        assert diffusion_gemma.config.config_from_hf(fields) == expected

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_attention_heads": 0}, r".*\(.*by zero\)"),
            ({"num_attention_heads": "2"}, r".*\(.*'str'"),
            ({"num_hidden_layers": 10**9}, ": num_hidden_layers=1000000000"),
            ({"layer_types": 5}, r".*\(.*'int'"),
            ({"tie_word_embeddings": "false"}, ": tie_word_embeddings='false' "),
            ({"model_type": ["sdar"]}, r": model_type=\['sdar'\] "),
        ],
    )
    def test_values_of_another_kind(self, tmp_path, changes, message):
        (tmp_path / "config.json").write_text(json.dumps(fields_of("sdar") | changes))
        with pytest.raises(ValueError, match=rf"{tmp_path}/config\.json ?{message}"):
            read_config(tmp_path)

    def test_a_byte_order_mark(self, tmp_path):
        text = (FIXTURES / "dream" / "config.json").read_text()
        (tmp_path / "config.json").write_text(text, encoding="utf-8-sig")
        assert read_config(tmp_path) == read_config(FIXTURES / "dream")

    def test_deep_json(self, tmp_path):
        (tmp_path / "config.json").write_text('{"a": ' + "[" * 100_000)
        with pytest.raises(ValueError, match=r"config\.json"):
            read_config(tmp_path)


@pytest.fixture
def written(tmp_path):
    """Writes a fixture's model with changed tensors."""

    def write(name, change):
        shutil.copy(FIXTURES / name / "config.json", tmp_path)
        tensors = load_file(FIXTURES / name / "model.safetensors")
        save_file(change(tensors) or tensors, tmp_path / "model.safetensors")
        return tmp_path

    return write


class TestTensors:
    def test_a_tied_matrix_under_both_names(self, written):
        def copy(tensors):
            tensors[HEAD] = tensors[EMBEDDING].copy()

        denoiser, params = denoisers.from_pretrained(written("sdar_tied", copy))
        assert denoiser.config.tie_embeddings
        same.trees(params, denoisers.from_pretrained(FIXTURES / "sdar_tied")[1])

    def test_a_tied_matrix_under_its_other_name_alone(self, written):
        def rename(tensors):
            tensors[HEAD] = tensors.pop(EMBEDDING)

        _, params = denoisers.from_pretrained(written("sdar_tied", rename))
        same.trees(params, denoisers.from_pretrained(FIXTURES / "sdar_tied")[1])

    def test_a_tied_matrix_and_another(self, written):
        def differ(tensors):
            tensors[HEAD] = 2 * tensors[EMBEDDING]

        with pytest.raises(ValueError, match=f"{HEAD} and {EMBEDDING} "):
            denoisers.from_pretrained(written("sdar_tied", differ))

    @pytest.mark.parametrize("name", ["llada", "dream", "sdar"])
    def test_prefixes_and_buffers(self, written, name):
        fields = fields_of(name)
        config = denoisers.from_pretrained(FIXTURES / name)[0].config
        half = np.arange(config.head_dim // 2) / (config.head_dim // 2)
        frequencies = (fields["rope_theta"] ** -half).astype(np.float32)

        def wrap(tensors):
            tensors = {f"module.{key}": value for key, value in tensors.items()}
            tensors["module.model.rotary_emb.inv_freq"] = frequencies
            tensors["module.model.position_ids"] = np.arange(4)
            return tensors

        _, params = denoisers.from_pretrained(written(name, wrap))
        same.trees(params, denoisers.from_pretrained(FIXTURES / name)[1])

        def wrong(tensors):
            tensors["model.rotary_emb.inv_freq"] = 2 * frequencies

        with pytest.raises(ValueError, match=r"inv_freq .*rope_theta="):
            denoisers.from_pretrained(written(name, wrong))

    def test_the_encoder_of_a_diffusion_gemma(self, written):
        """Its weights are those of the decoder, and some files hold them twice."""

        def copy(tensors):
            for name in [n for n in tensors if n.endswith("q_proj.weight") and "decoder" in n]:
                tensors[name.replace("decoder", "encoder.language_model")] = tensors[name].copy()

        loaded = diffusion_gemma.load(written("diffusion_gemma", copy))
        same.trees(loaded.params, diffusion_gemma.load(FIXTURES / "diffusion_gemma").params)


class TestNumbers:
    def test_a_weight_that_is_not_finite(self, written, tmp_path):
        name = "model.layers.1.mlp.up_proj.weight"

        def damage(tensors):
            tensors[name] = tensors[name].copy()
            tensors[name][3, 5] = np.nan

        with pytest.raises(FloatingPointError, match=rf"tensor {name} holds numbers"):
            denoisers.from_pretrained(written("sdar", damage))
        denoiser, params = denoisers.from_pretrained(FIXTURES / "sdar")
        params["head"] = params["head"].at[0, 0].set(np.inf)
        denoisers.save_orbax(tmp_path / "orbax", denoiser, params)
        with pytest.raises(FloatingPointError, match="tensor head "):
            denoisers.from_pretrained(tmp_path / "orbax")

    def test_a_weight_that_its_new_type_cannot_hold(self, written):
        def grow(tensors):
            tensors[HEAD] = tensors[HEAD] + np.float32(1e5)

        directory = written("sdar", grow)
        with pytest.raises(FloatingPointError, match=rf"{HEAD} overflows in float16"):
            denoisers.from_pretrained(directory, param_dtype="float16")

    def test_float16_weights_compute_in_bfloat16(self, written):
        half = lambda tensors: {key: value.astype(np.float16) for key, value in tensors.items()}
        denoiser, _ = denoisers.from_pretrained(written("dream", half))
        assert (denoiser.config.param_dtype, denoiser.config.dtype) == (jnp.float16, jnp.bfloat16)

    def test_scores_that_are_not_finite_end_an_answer(self):
        denoiser, params = denoisers.from_pretrained(assets() / "sudoku")
        params["final_norm"]["scale"] = params["final_norm"]["scale"] * np.inf
        tokenizer = denoisers.load_tokenizer(assets() / "sudoku")
        shape = RolloutSettings(gen_length=4, block_length=4)
        writer = MaskedWriter(denoiser, params, tokenizer, "threshold:threshold=0.9", shape)
        with pytest.raises(FloatingPointError, match=r"\brow 0 .* position \d"):
            Generator(writer).generate(["12..="])


CHAT = [{"role": "system", "content": "4"}, {"role": "user", "content": "2"}]


class TestTokenizers:
    @pytest.fixture
    def model(self, tmp_path):
        tiny.save_byte_model(tmp_path)
        return tmp_path

    def settings(self, model, **changes):
        path = model / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def shown(self, model):
        tokenizer = denoisers.load_tokenizer(model)
        return tokenizer.decode(tokenizer.encode_prompt(CHAT), cut_at_eos=False)

    def test_named_templates(self, model):
        templates = {"tools": "no", "default": "{{ messages[1].content }}"}
        named = [{"name": key, "template": value} for key, value in templates.items()]
        self.settings(model, chat_template=named)
        assert self.shown(model) == "2"
        self.settings(model, chat_template=[named[0], {"name": "rag", "template": "no"}])
        with pytest.raises(ValueError, match="rag, tools"):
            self.shown(model)

    def test_a_folder_of_templates(self, model):
        (model / "chat_template.jinja").write_text("{{ messages[1].content }}")
        (model / "additional_chat_templates").mkdir()
        (model / "additional_chat_templates" / "tools.jinja").write_text("no")
        assert self.shown(model) == "2"

    def test_two_templates_that_disagree(self, model, caplog):
        self.settings(model, chat_template="{{ messages[0].content }}")
        (model / "chat_template.jinja").write_text("{{ messages[1].content }}")
        assert self.shown(model) == "2"
        assert "tokenizer_config.json" in caplog.text

    def test_a_damaged_file_beside_it_is_named(self, model):
        (model / "tokenizer_config.json").write_text("{")
        with pytest.raises(ValueError, match=r"tokenizer_config\.json"):
            denoisers.load_tokenizer(model)

    def test_a_template_that_is_no_text(self, model):
        (model / "chat_template.jinja").write_bytes(b"\xff")
        with pytest.raises(ValueError, match=r"chat_template\.jinja is not UTF-8 text"):
            denoisers.load_tokenizer(model)

    def test_a_template_of_a_processor(self, model):
        template = {"chat_template": "{{ messages[1].content }}"}
        (model / "chat_template.json").write_text(json.dumps(template))
        assert self.shown(model) == "2"

    @pytest.mark.parametrize("template", ["{{ raise_exception('no system role') }}", "{% if %}"])
    def test_a_template_that_raises(self, model, template):
        (model / "chat_template.jinja").write_text(template)
        with pytest.raises(
            ValueError, match=r"chat_template\.jinja refuses .*\(roles: system, user\)"
        ):
            self.shown(model)

    @pytest.mark.parametrize("prompt", ["2\ud83d", [{"role": "user", "content": "2\ud83d"}]])
    def test_half_a_character(self, model, prompt):
        (model / "chat_template.jinja").write_text("{{ messages[0].content }}")
        with pytest.raises(ValueError, match=r"2\\ud83d.* character 1;"):
            denoisers.load_tokenizer(model).encode_prompt(prompt)

    def test_all_ends_of_a_text(self, model):
        fields = json.loads((model / "config.json").read_text()) | {"eos_token_id": [256, 258]}
        (model / "config.json").write_text(json.dumps(fields))
        (model / "generation_config.json").write_text('{"eos_token_id": [259, 256]}')
        tokenizer = denoisers.load_tokenizer(model)
        assert tokenizer.eos_id == tokenizer.pad_id == 256
        assert tokenizer.stop_ids == (256, 258, 259)

    def test_all_files_are_saved(self, model, tmp_path):
        names = ["chat_template.jinja", "generation_config.json", "tokenizer.json"]
        names += ["additional_chat_templates/tools.jinja", "tokenizer_config.json"]
        (model / "additional_chat_templates").mkdir()
        for name in names[:2] + names[3:4]:
            (model / name).write_text("{}")
        denoisers.load_tokenizer(model).save(tmp_path / "saved")
        for name in names:
            assert (tmp_path / "saved" / name).read_bytes() == (model / name).read_bytes()

    def test_code_of_the_published_class_is_saved(self, model, tmp_path):
        """What transformers runs on request; code that is not there is not named."""
        file = model / "config.json"
        kept = {"AutoConfig": "configuration_x.XConfig", "AutoModel": "me/x--modeling_x.XModel"}
        auto_map = {"auto_map": kept | {"AutoModelForCausalLM": "modeling_absent.XModel"}}
        file.write_text(json.dumps(json.loads(file.read_text()) | auto_map))
        (model / "configuration_x.py").write_text("raise RuntimeError")
        denoiser, params = denoisers.from_pretrained(model)
        for save in (denoisers.save_pretrained, denoisers.save_orbax):
            directory = tmp_path / save.__name__
            save(directory, denoiser, params, denoisers.load_tokenizer(model))
            assert json.loads((directory / "config.json").read_text())["auto_map"] == kept
            assert (directory / "configuration_x.py").read_text() == "raise RuntimeError"

    def test_words_that_a_closed_vocabulary_lacks(self):
        tokenizer = denoisers.load_tokenizer(assets() / "arithmetic")
        with pytest.raises(ValueError, match=r"arithmetic .*' pears'.* apples .*numbers"):
            tokenizer.encode(" Tom has 3 pears.")
        with pytest.raises(ValueError, match=r"arithmetic .* '3'\. .*space"):
            tokenizer.encode("3 eggs")  # It knows " 3".
        with pytest.raises(ValueError) as raised:
            denoisers.load_tokenizer(assets() / "sudoku", example="1234=").encode("9999=")
        for part in ("'9999=': ", "of sudoku", "for '9'. ", ". = 1 2 3 4. ", "'1234='"):
            assert part in str(raised.value)
