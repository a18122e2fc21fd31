"""The documents name only files, settings, flags and policies that exist."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

import chaos
from jax_unmask import notation, policies, recipes, tasks
from jax_unmask.commands import (
    bench,
    command_line,
    convert,
    generate,
    harness,
    hub,
    plan,
    serve,
    train,
)
from jax_unmask.commands import eval as evaluate
from jax_unmask.policies.checkpoint import made_for
from jax_unmask.settings import declared
from jax_unmask.shipped import shipped_models, shipped_policies

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Made by `jax_unmask.eval`, as long as what was measured.
TABLES = re.compile(r"docs/experiments/.*/(summary|public)\.md")
CODE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILES = re.compile(r".*\.(json|jsonl|safetensors|py|png|md|html)")
FOLDERS = ("configs", "docs", "jax_unmask", "launch", "tests", "third_party", ".ci")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(params=DOCUMENTS, ids=name)
def document(request) -> Path:
    return request.param


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_pages_are_short(document):
    is_generated = TABLES.fullmatch(name(document)) or name(document) == "docs/config.md"
    limit = 1000 if is_generated else 400
    assert len(document.read_text().splitlines()) <= limit


def prose(path: Path) -> str:
    return CODE.sub("", path.read_text())


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def test_links_lead_somewhere(document):
    broken = []
    for target in re.findall(r"\]\(([^)]+)\)", prose(document)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def test_every_page_is_in_the_index():
    linked = set(re.findall(r"\]\(([^)#]+)", (ROOT / "docs" / "README.md").read_text()))
    pages = {name(path).removeprefix("docs/") for path in DOCUMENTS[2:]}
    pages = {page for page in pages if not TABLES.fullmatch(f"docs/{page}")}
    assert pages - linked == {"README.md"}


def spans(path: Path) -> list[str]:
    """The pieces of code within sentences and tables."""
    found = re.findall(r"(?<!`)`([^`\n]+)`", prose(path))
    return [text.replace(r"\|", "|").strip() for text in found]


def commands(path: Path) -> list[list[str]]:
    """The words of every command line in the page's code blocks."""
    found = []
    for language, block in CODE.findall(path.read_text()):
        if language != "bash":
            continue
        lines = re.sub(r"\\\n\s*", " ", block).splitlines()
        found += [shlex.split(line, comments=True) for line in lines if line.strip()]
    return [words for line in found for words in split(line)]


def split(words: list[str]) -> list[list[str]]:
    """The commands of a line that are joined by `&&`."""
    commands: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", "do", ";"):
            commands.append([])
        else:
            commands[-1].append(word)
    return commands


def test_named_files_exist(document):
    texts = spans(document) + [word for words in commands(document) for word in words]
    missing = []
    for text in texts:
        match = re.fullmatch(rf"(?:--config=)?((?:{'|'.join(FOLDERS)})/[\w./-]*)(:.*)?", text)
        if match and not (ROOT / match[1]).exists():
            missing.append(text)
    assert not missing


def test_policies_that_are_named_ship_or_are_said_to_have_shipped():
    """In scripts, too: what a picture or a command beside it needs."""
    scripts = [*(ROOT / "docs").rglob("*.py"), *(ROOT / "launch").iterdir()]
    absent = {}
    for path in (*DOCUMENTS, *scripts):
        text = path.read_text()
        named = set(re.findall(rf"\b(?:{'|'.join(shipped_models())})(?:-[\w.]+)*-seed\d", text))
        if "10f5df1" not in text:  # The last commit that held those of one alpha.
            absent[name(path)] = named - set(shipped_policies())
    assert not {path: names for path, names in absent.items() if names}


# ---- settings


KEYS = {each.key for name in recipes.RECIPES for each in declared(recipes.defaults(name))}
KEYS |= {key[: match.start()] for key in KEYS for match in re.finditer(r"\.", key)}
SECTIONS = {key.partition(".")[0] for key in KEYS if "." in key}


def test_named_settings_exist(document):
    unknown = []
    for text in spans(document):
        for word in text.split():
            match = re.fullmatch(r"(--config\.|config\.)?([a-z_]+(?:\.[a-z_0-9]+)*)(=.*)?", word)
            if not match or FILES.fullmatch(word):
                continue
            prefix, key, _ = match.groups()
            if (prefix or ("." in key and key.split(".")[0] in SECTIONS)) and key not in KEYS:
                unknown.append(word)
    assert not unknown


def test_commands_set_settings_that_exist(document, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(document):
        if not any(word.startswith("--config=") for word in words):
            continue
        values = flags.FlagValues()
        given = ["command", *(word for word in words if word.startswith("--config"))]
        given = [word.replace("$seed", "0") for word in given]
        # A name such as `gsm8k` stands for an experiment file of the package.
        given = [
            re.sub("(?<=^--config=).+", lambda name: command_line.find_experiment(name[0]), word)
            for word in given
        ]
        config_flags.DEFINE_config_file(
            "config", flag_values=values, sys_argv=given, lock_config=True
        )
        values(given)


# ---- flags


def options() -> dict[str, set[str]]:
    """The flags of each command."""
    parsers = {
        "bench": bench.parser(),
        "convert": convert.parser(),
        "generate": generate.parser(),
        "harness": harness.parser(),
        "serve": serve.parser(),
        "hub": hub.parser(),
        "chaos": chaos.parser(),
    }
    found = {
        command: {
            option.lstrip("-") for action in parser._actions for option in action.option_strings
        }
        for command, parser in parsers.items()
    }
    for command, module in {"train": train, "eval": evaluate, "plan": plan}.items():
        values = flags.FlagValues()
        module.define_flags(values)
        found[command] = set(values)
    return found


OPTIONS = options()


def test_commands_have_the_flags_that_are_given(document):
    unknown = []
    for words in commands(document):
        modules = [word for word in words if word.startswith("jax_unmask.")]
        command = modules[0].removeprefix("jax_unmask.") if modules else ""
        if command not in OPTIONS:
            continue
        for word in words[words.index(modules[0]) + 1 :]:
            flag = word.partition("=")[0]
            if not flag.startswith("--") or flag.startswith("--config."):
                continue
            if flag.removeprefix("--") not in OPTIONS[command]:
                unknown.append((command, flag))
    assert not unknown


def test_named_flags_exist(document):
    if document.parent.name == "launch":
        return  # Its pages name the flags of schedulers.
    known = set().union(*OPTIONS.values(), {"signal", "n", "cpu_devices"})
    named = [re.split("[= ]", text)[0] for text in spans(document) if text.startswith("--")]
    unknown = [flag for flag in named if "." not in flag and flag[2:] not in known]
    assert not unknown


# ---- policies


POLICIES = set(policies.available())


def test_named_policies_exist(document):
    texts = spans(document)
    for words in commands(document):
        texts += [word.partition("=")[2] for word in words if word.startswith("--policy=")]
    for text in texts:
        if not re.fullmatch(rf"({'|'.join(POLICIES)}):\w[^ ]*=[^ ]+", text):
            continue
        for each in notation.expand(text):
            if each.name != "learned":
                policies.parse_policy(each.text)
            elif "/" in each.target:
                known = policies.available()["learned"]
                assert {setting for setting, _ in each.settings} <= set(known)
            else:
                place = made_for(policies.policy_directory(each.target))[0]
                shape = {"gen_length": place.gen_length, "block_length": place.block_length}
                environment = {"denoiser": place.model, **shape}
                policies.parse_policy(each.text, environment=environment)


# ---- code


def test_the_walks_through_the_code_name_what_is_there():
    """Six files from a prompt to a gradient, for each kind of training."""
    rows = re.findall(
        r"^\| `(jax_unmask/\S+)` \| (.*) \|$", (ROOT / "docs/code.md").read_text(), re.M
    )
    assert len(rows) == 12
    for file, text in rows:
        code = (ROOT / file).read_text()
        names = {dotted.rpartition(".")[2] for dotted in re.findall(r"`([\w.]+)`", text)}
        assert not [name for name in names if not re.search(rf"\b{name}\b", code)], file


# ---- and the other way round: what there is is documented


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("tasks.md", tasks.names()),
        ("policies.md", POLICIES),
        ("training.md", list(recipes.RECIPES)),
        ("training.md", [name(path) for path in (ROOT / "configs").glob("*.py")]),
    ],
    ids=["tasks", "policies", "recipes", "experiments"],
)
def test_everything_is_documented(page, names):
    words = {word for text in spans(ROOT / "docs" / page) for word in re.split("[:,= ]", text)}
    assert set(names) <= words


# ---- Python


def test_named_modules_exist(document):
    names = [text for text in spans(document) if re.fullmatch(r"jax_unmask(\.\w+)+", text)]
    for language, block in CODE.findall(document.read_text()):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("jax_unmask"):
                names += [f"{node.module}.{alias.name}" for alias in node.names]
    assert all(map(resolves, names)), [text for text in names if not resolves(text)]


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, or something in one.

    A module that needs a library which is not installed is read instead of imported.
    """
    try:
        found = importlib.util.find_spec(dotted)
    except (AttributeError, ModuleNotFoundError):  # the part before the last dot is no package
        found = None
    if found is not None:
        return True
    module, _, attribute = dotted.rpartition(".")
    try:
        return bool(module) and hasattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if str(error.name).startswith("jax_unmask"):
            raise
    tree = ast.parse(Path(importlib.util.find_spec(module).origin).read_text())
    return attribute in {getattr(node, "name", None) for node in tree.body}
