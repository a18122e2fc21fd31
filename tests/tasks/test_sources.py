"""Problem files, the splits that they serve, and TensorFlow Datasets."""

import gzip
import json
import pathlib
import subprocess
import sys

import pytest

import hub_cache
from jax_unmask.tasks import files, sources, tfds
from jax_unmask.tasks.gsm8k import Gsm8k
from jax_unmask.tasks.math import Math

SAMPLES = pathlib.Path(__file__).parents[1] / "fixtures" / "samples" / "gsm8k"


def examples(source):
    return [source[index] for index in range(len(source))]


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_plain_and_gzipped_files_hold_the_same(tmp_path):
    plain, packed = SAMPLES / "test.jsonl", tmp_path / "test.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    expected = [json.loads(line) for line in plain.read_text().splitlines()]
    assert files.read_table(plain, ("question", "answer")) == expected
    assert files.read_table(packed, ("question", "answer")) == expected


def test_only_line_ends_end_a_line_and_blank_ones_count(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"q": "1\u2028\x85"}', "", '{"q": "2"}')
    assert files.read_table(path) == [{"q": "1\u2028\x85"}, {"q": "2"}]
    with pytest.raises(ValueError, match="line 5: malformed JSON"):
        files.read_table(write(path, '{"q": "1"}', "", '{"q": "2"}', "", "oops"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"q": "1"', "malformed JSON"),
        ("[" * 100_000, "malformed JSON"),
        ('["q"]', "found list"),
        ('{"p": "1"}', "'q' is missing"),
        ('{"q": 1}', "'q' .* found 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "a.jsonl", '{"q": "fine"}', line)
    with pytest.raises(ValueError, match=f"a.jsonl, line 2: .*{message}"):
        files.read_table(path, ("q",))


@pytest.mark.parametrize(
    ("task", "good", "bad", "field"),
    [
        (Gsm8k, {"question": "?", "answer": "#### 1"}, {"answer": "18"}, "answer"),
        (Gsm8k, {"question": "?", "answer": "#### 1"}, {"answer": "#### six"}, "answer"),
        (Math, {"problem": "?", "solution": "\\boxed{1}"}, {"solution": "1"}, "solution"),
        (Math, {"problem": "?", "solution": "\\boxed{1}"}, {"answer": ""}, "answer"),
    ],
)
def test_a_line_without_a_right_answer_is_named(tmp_path, task, good, bad, field):
    path = write(tmp_path / "train.jsonl", json.dumps(good), json.dumps({**good, **bad}))
    with pytest.raises(ValueError, match=f"train.jsonl, line 2: field '{field}'"):
        task(path).source("train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"\n \n", r".*\['q'\]"),
        ("a.jsonl", b"\xff\xfe\x00", ".*UTF-8"),
        ("a.jsonl.gz", b'{"q": "1"}', "is not .*gzip"),
        ("a.jsonl.gz", gzip.compress(mtime=0, data=b'{"q": "1"}\n' * 100)[:-12], "is not .*gzip"),
    ],
)
def test_files_that_are_not_what_their_name_says(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} {message}"):
        files.read_table(tmp_path / name, ["q"])


def test_a_held_out_example_is_in_one_split_only():
    assert len(Gsm8k(SAMPLES).source("train")) == 30  # None is, unless asked for.
    task = Gsm8k(SAMPLES, hold_out=15)
    whole = set((SAMPLES / "train.jsonl").read_text().splitlines())
    train, validation = (examples(task.source(split)) for split in ("train", "validation"))
    assert len(validation) == 2
    assert sorted(map(json.dumps, train + validation)) == sorted(whole)


def test_a_single_file_serves_its_own_splits(tmp_path):
    packed = tmp_path / "gsm8k_test.jsonl.gz"
    packed.write_bytes(gzip.compress((SAMPLES / "test.jsonl").read_bytes()))
    train, test = Gsm8k(SAMPLES / "train.jsonl", hold_out=15), Gsm8k(packed)
    assert [len(train.source(split)) for split in ("train", "validation")] == [28, 2]
    assert len(test.source("test")) == 7
    for task, split in ((train, "test"), (test, "train")):
        with pytest.raises(ValueError, match=f"split '{split}'; .*{split}.jsonl"):
            task.source(split)


def test_wrong_paths_say_what_is_needed(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=rf"path='{path}' .*train\.jsonl"):
            Gsm8k(path).source("train")
    with pytest.raises(ValueError, match="split='dev' is unknown"):
        Gsm8k(SAMPLES).source("dev")


def test_concatenation_tags_and_keeps_order():
    joined = sources.Concatenation({"a": [{"q": "0"}, {"q": "1"}], "b": [], "c": [{"q": "2"}]}, "t")
    tags = [("0", "a"), ("1", "a"), ("2", "c")]
    assert examples(joined) == [{"q": q, "t": t} for q, t in tags]
    for index in (3, -1):
        with pytest.raises(IndexError):
            joined[index]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """`gsm8k` of TensorFlow Datasets, prepared from the samples; the training file gzipped."""
    folder = tmp_path_factory.mktemp("jsonl")
    raw = (SAMPLES / "train.jsonl").read_bytes()
    (folder / "train.jsonl.gz").write_bytes(gzip.compress(raw))
    (folder / "test.jsonl").write_bytes((SAMPLES / "test.jsonl").read_bytes())
    data_dir = tmp_path_factory.mktemp("tfds")
    assert data_dir in tfds.prepare_gsm8k(folder, data_dir).parents
    return data_dir


def test_tensorflow_datasets_hold_the_same_as_the_files(prepared):
    for stored in ("train", "test"):
        lines = (SAMPLES / f"{stored}.jsonl").read_text().splitlines()
        # TensorFlow Datasets stores a split in the order of the keys' hashes.
        found = sorted(map(json.dumps, tfds.read_gsm8k(stored, prepared)))
        assert found == sorted(json.dumps(json.loads(line)) for line in lines)


def test_gsm8k_through_tensorflow_datasets(prepared):
    task = Gsm8k(data_dir=prepared, hold_out=15)
    train, validation = task.source("train"), task.source("validation")
    assert (len(train), len(validation), len(task.source("test"))) == (28, 2, 7)
    questions = {example["question"] for example in examples(train)}
    assert questions.isdisjoint(example["question"] for example in examples(validation))
    assert task.check(validation[0], task.target(validation[0])) == 1
    with pytest.raises(ValueError, match="split='dev' is unknown"):
        task.source("dev")


def test_gsm8k_prepares_itself_from_the_hubs_files(tmp_path, monkeypatch):
    cache, data_dir = tmp_path / "cache", tmp_path / "tfds"
    hub_cache.use(monkeypatch, cache)
    with pytest.raises(FileNotFoundError, match=rf"{data_dir}.*hf download .*{tfds.GSM8K}.*path"):
        Gsm8k(data_dir=data_dir).source("train")
    folder = hub_cache.folder(cache, tfds.GSM8K) / "main"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_bytes((SAMPLES / f"{split}.jsonl").read_bytes())
    assert len(Gsm8k(data_dir=data_dir).source("train")) == 30
    assert list(data_dir.glob("gsm8k/**/*array_record*"))
    # Prepared once, it needs the hub no more; without TensorFlow Datasets the hub's files serve.
    hub_cache.use(monkeypatch, tmp_path / "nothing")
    assert len(Gsm8k(data_dir=data_dir).source("test")) == 7
    hub_cache.use(monkeypatch, cache)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert len(Gsm8k().source("test")) == 7


def test_preparation_verifies_the_files(tmp_path):
    good = '{"question": "?", "answer": "#### 1"}'
    write(tmp_path / "test.jsonl", good)
    for bad in ('{"question": "?"}', '{"question": "?", "answer": "####1"}'):
        write(tmp_path / "train.jsonl", good, bad)
        with pytest.raises(ValueError, match=r"train.jsonl, line 2: field 'answer'"):
            tfds.prepare_gsm8k(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("argument", "split", "unwanted"),
    [
        ("path", "test", ("tensorflow", "tensorflow_datasets", "grain", "jax")),
        ("data_dir", "test", ("tensorflow",)),
    ],
)
def test_what_is_not_needed_is_not_imported(prepared, argument, split, unwanted):
    where = SAMPLES if argument == "path" else prepared
    code = (
        "import sys\nfrom jax_unmask import tasks\n"
        f"print(len(tasks.create('gsm8k', {argument}={str(where)!r}).source({split!r})))\n"
        f"assert not set({unwanted}) & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "7"


def test_missing_libraries_name_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r"pip install tensorflow-datasets .*path=DIR"):
        Gsm8k(data_dir=tmp_path).source("train")
