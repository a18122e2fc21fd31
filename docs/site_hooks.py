"""Hooks of the documentation site: `mkdocs build --strict`, with the extra `docs`."""

import pathlib
import re
from typing import Any

DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent
SOURCE = "https://github.com/jax-unmask/jax_unmask/blob/main"
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)]*)?\)")
_HEADING = re.compile(r"\*\*(?P<title>[^*]+)\*\*")


def on_config(config: Any) -> Any:
    """The navigation, from the index that people read in the repository."""
    config.nav = navigation((DOCS / "README.md").read_text(encoding="utf-8"))
    return config


def navigation(index: str) -> list[Any]:
    """Sections and pages of docs/README.md.

    >>> navigation("**Use**\\n\\n| [Tasks](tasks.md) | all; [figures](a/b.md#c) |\\n[x](../y.md)")
    [{'Overview': 'README.md'}, {'Use': [{'Tasks': 'tasks.md'}, {'figures': 'a/b.md'}]}]
    """
    nav: list[Any] = [{"Overview": "README.md"}]
    for line in index.splitlines():
        if heading := _HEADING.fullmatch(line.strip()):
            nav.append({heading["title"]: []})
            continue
        for link in _LINK.finditer(line):
            if link["target"].endswith((".md", ".ipynb")) and not link["target"].startswith(".."):
                (pages,) = nav[-1].values()
                pages.append({link["text"]: link["target"]})
    return nav


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files outside of docs/ lead to the repository."""
    folder = (DOCS / page.file.src_uri).parent

    def outside(link: re.Match[str]) -> str:
        target = link["target"]
        if re.match(r"\w+:", target):
            return link[0]
        path = (folder / target).resolve()
        is_shown = path.is_relative_to(DOCS) and path.suffix not in (".py", ".sh", ".jsonl")
        if is_shown and path.is_file():
            return link[0]
        name = path.relative_to(ROOT)
        return f"[{link['text']}]({SOURCE}/{name}{link['anchor'] or ''})"

    return _LINK.sub(outside, markdown)
