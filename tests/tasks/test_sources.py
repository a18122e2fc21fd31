import gzip
import json
import pathlib
import pickle
import subprocess
import sys

import pytest

from jax_unmask.tasks import sources
from jax_unmask.tasks.gsm8k import Gsm8k
from jax_unmask.tasks.math import Math

SAMPLES = pathlib.Path(__file__).parents[1] / "fixtures" / "samples"


def examples(source):
    return [source[index] for index in range(len(source))]


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_plain_and_gzipped_files_hold_the_same(tmp_path):
    plain = SAMPLES / "gsm8k" / "test.jsonl"
    packed = tmp_path / "test.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    fields = ("question", "answer")
    expected = [json.loads(line) for line in plain.read_text().splitlines()]
    assert examples(sources.JsonlSource(plain, fields)) == expected
    assert examples(sources.JsonlSource(packed, fields)) == expected


def test_blank_lines_are_skipped_and_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"q": "1"}', "", '{"q": "2"}', "", "oops")
    with pytest.raises(ValueError, match="line 5: malformed JSON"):
        sources.JsonlSource(path, ("q",))
    path = write(path, '{"q": "1"}', "", '{"q": "2"}')
    assert len(sources.JsonlSource(path, ("q",))) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"q": "1"', "malformed JSON"),
        ("[" * 100_000, "malformed JSON"),
        ('["q"]', "expected a JSON object, found list"),
        ('{"p": "1"}', r"field 'q' is missing; found \['p'\]"),
        ('{"q": 1}', "field 'q' must be text, found 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "a.jsonl", '{"q": "fine"}', line)
    with pytest.raises(ValueError, match=f"a.jsonl, line 2: {message}"):
        sources.JsonlSource(path, ("q",))


@pytest.mark.parametrize(
    ("task", "good", "bad", "message"),
    [
        (Gsm8k, {"question": "?", "answer": "#### 1"}, {"answer": "18"}, "'#### NUMBER'"),
        (Gsm8k, {"question": "?", "answer": "#### 1"}, {"answer": "#### six"}, "'#### NUMBER'"),
        (Math, {"problem": "?", "solution": "\\boxed{1}"}, {"solution": "1"}, "no .*boxed"),
        (Math, {"problem": "?", "solution": "\\boxed{1}"}, {"answer": ""}, "must be text"),
    ],
)
def test_a_line_without_a_right_answer_is_named(tmp_path, task, good, bad, message):
    path = write(tmp_path / "train.jsonl", json.dumps(good), json.dumps({**good, **bad}))
    with pytest.raises(ValueError, match=f"train.jsonl, line 2: .*{message}"):
        task(path).source("train")


def test_an_empty_file_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", "", " ")
    with pytest.raises(ValueError, match=r"a.jsonl holds no examples; .*\['q'\]"):
        sources.JsonlSource(path, ("q",))


def test_files_that_are_not_what_their_name_says(tmp_path):
    fake = write(tmp_path / "a.jsonl.gz", '{"q": "1"}')
    with pytest.raises(ValueError, match=r"a\.jsonl.gz is not a gzip file"):
        sources.JsonlSource(fake, ("q",))
    fake.write_bytes(gzip.compress(b'{"q": "1"}\n' * 100)[:-12])
    with pytest.raises(ValueError, match=r"a\.jsonl.gz is not a gzip file"):
        sources.JsonlSource(fake, ("q",))
    binary = tmp_path / "a.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"a\.jsonl is not UTF-8 text"):
        sources.JsonlSource(binary, ("q",))
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        sources.JsonlSource(tmp_path / "none.jsonl", ("q",))


def test_separators_of_unicode_do_not_end_a_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "1\u2028\x85"}\n', encoding="utf-8")
    assert sources.JsonlSource(path, ("q",))[0] == {"q": "1\u2028\x85"}


def test_a_held_out_example_is_in_one_split_only():
    task = Gsm8k(SAMPLES / "gsm8k")
    whole = set((SAMPLES / "gsm8k" / "train.jsonl").read_text().splitlines())
    train = [json.dumps(example) for example in examples(task.source("train"))]
    validation = [json.dumps(example) for example in examples(task.source("validation"))]
    assert len(validation) == 2
    assert sorted(train + validation) == sorted(whole)


def test_a_single_file_serves_its_own_splits(tmp_path):
    train = Gsm8k(SAMPLES / "gsm8k" / "train.jsonl")
    assert len(train.source("train")) == 28
    assert len(train.source("validation")) == 2
    with pytest.raises(ValueError, match="training file and holds no split 'test'"):
        train.source("test")
    test = Gsm8k(SAMPLES / "gsm8k" / "test.jsonl")
    assert len(test.source("test")) == 7
    with pytest.raises(ValueError, match="test file and holds no split 'train'"):
        test.source("train")


def test_wrong_paths_say_what_is_needed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist; give .*train.jsonl"):
        Gsm8k(tmp_path / "nowhere").source("train")
    with pytest.raises(FileNotFoundError, match=r"neither train.jsonl nor train.jsonl.gz"):
        Gsm8k(tmp_path).source("train")
    with pytest.raises(ValueError, match="split='dev' is unknown"):
        Gsm8k(SAMPLES / "gsm8k").source("dev")


def test_concatenation_tags_and_keeps_order():
    joined = sources.Concatenation({"a": [{"q": "0"}, {"q": "1"}], "b": [], "c": [{"q": "2"}]}, "t")
    assert examples(joined) == [
        {"q": "0", "t": "a"},
        {"q": "1", "t": "a"},
        {"q": "2", "t": "c"},
    ]
    with pytest.raises(IndexError):
        joined[3]
    with pytest.raises(IndexError):
        joined[-1]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """`gsm8k` of TensorFlow Datasets, prepared from the samples; the training file gzipped."""
    files = tmp_path_factory.mktemp("jsonl")
    raw = (SAMPLES / "gsm8k" / "train.jsonl").read_bytes()
    (files / "train.jsonl.gz").write_bytes(gzip.compress(raw))
    (files / "test.jsonl").write_bytes((SAMPLES / "gsm8k" / "test.jsonl").read_bytes())
    data_dir = tmp_path_factory.mktemp("tfds")
    where = sources.prepare_gsm8k_tfds(files, data_dir)
    assert data_dir in where.parents
    return data_dir


def test_tensorflow_datasets_hold_the_same_as_the_files(prepared):
    def key(example):
        return example["question"]

    for stored in ("train", "test"):
        lines = (SAMPLES / "gsm8k" / f"{stored}.jsonl").read_text().splitlines()
        source = sources.TfdsSource("gsm8k", stored, prepared, fields=("question", "answer"))
        # TensorFlow Datasets stores a split in the order of the keys' hashes.
        assert sorted(examples(source), key=key) == sorted(map(json.loads, lines), key=key)


def test_gsm8k_through_tensorflow_datasets(prepared):
    task = Gsm8k(data_dir=prepared)
    train, validation = task.source("train"), task.source("validation")
    assert (len(train), len(validation), len(task.source("test"))) == (28, 2, 7)
    questions = {example["question"] for example in examples(train)}
    assert questions.isdisjoint(example["question"] for example in examples(validation))
    example = validation[0]
    assert task.check(example, task.target(example)) == 1
    with pytest.raises(ValueError, match="split='dev' is unknown"):
        task.source("dev")


def test_sources_travel_to_other_processes(prepared):
    for source in (
        sources.TfdsSource("gsm8k", "test", prepared),
        Gsm8k(SAMPLES / "gsm8k").source("train"),
    ):
        assert examples(pickle.loads(pickle.dumps(source))) == examples(source)


def test_all_fields_of_a_data_set(prepared):
    example = sources.TfdsSource("gsm8k", "test", prepared)[0]
    assert set(example) == {"question", "answer", "annotation", "short_answer"}
    with pytest.raises(ValueError, match=r"no fields \['solution'\]"):
        sources.TfdsSource("gsm8k", "test", prepared, fields=("solution",))


def test_unprepared_data_names_both_remedies(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not been prepared .*prepare_gsm8k_tfds.*path="):
        Gsm8k(data_dir=tmp_path).source("train")


def test_preparation_verifies_the_files(tmp_path):
    write(tmp_path / "train.jsonl", '{"question": "?", "answer": "#### 1"}', '{"question": "?"}')
    write(tmp_path / "test.jsonl", '{"question": "?", "answer": "#### 1"}')
    with pytest.raises(ValueError, match=r"train.jsonl, line 2: field 'answer' is missing"):
        sources.prepare_gsm8k_tfds(tmp_path, tmp_path / "out")
    write(tmp_path / "train.jsonl", '{"question": "?", "answer": "####1"}')
    with pytest.raises(ValueError, match=r"train.jsonl, line 1: .*exactly once"):
        sources.prepare_gsm8k_tfds(tmp_path, tmp_path / "out")


def test_files_need_neither_tensorflow_nor_its_datasets():
    code = (
        "import sys\n"
        "from jax_unmask import tasks\n"
        f"task = tasks.create('gsm8k', path={str(SAMPLES / 'gsm8k')!r})\n"
        "print(len(task.source('train')))\n"
        "loaded = {'tensorflow', 'tensorflow_datasets', 'grain', 'jax'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "28"


def test_tensorflow_is_not_imported_with_its_datasets(prepared):
    code = (
        "import sys\n"
        "from jax_unmask.tasks.gsm8k import Gsm8k\n"
        f"print(len(Gsm8k(data_dir={str(prepared)!r}).source('test')))\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "7"


def test_missing_libraries_name_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r"pip install tensorflow-datasets .*path=DIR"):
        Gsm8k(data_dir=tmp_path).source("train")
