"""A self-contained page: styles, scripts and data in one HTML file.

Nothing in it is fetched, and the browser is told to refuse what would be: its content security
policy allows the page's own script and style, by their hashes, and nothing else. So text that a
model wrote stays text, even where it looks like markup.
"""

import base64
import hashlib
import html
import importlib.resources
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jax_unmask.runtime.files import atomic_write

Data = Mapping[str, Any]

_WEB = importlib.resources.files("jax_unmask.report") / "web"
_SCRIPTS = ("base", "styles", "frontier", "tables", "curves", "trace", "viewer", "main")
# Characters that could end the data's script element, or a line of it.
_ESCAPES = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})


def write_page(path: str | os.PathLike[str], **parts: Any) -> None:
    """Writes a page (see `whole`) to a file, whole or not at all."""
    atomic_write(path, whole(**parts))


def whole(
    *,
    title: str,
    subtitle: str = "",
    sections: Sequence[Data] = (),
    curves: Sequence[Data] = (),
    problems: Sequence[Data] = (),
    problems_note: str = "",
    text: str = "",
    about: Sequence[Sequence[str]] = (),
    config: str = "",
) -> str:
    """A page as text.

    Args:
        title: heading.
        subtitle: a line below it.
        sections: what `report.payload.section` gives.
        curves: what `report.curves.read_curves` gives.
        problems: what `report.traces.problem` gives.
        problems_note: describes which problems these are.
        text: shown where scripts do not run.
        about: what it was made by: names and texts, at the end of the page.
        config: all settings as text, folded below them.
    """
    data = {
        "title": title,
        "subtitle": subtitle,
        "sections": list(sections),
        "curves": list(curves),
        "problems": list(problems),
        "problems_note": problems_note,
        "about": [list(pair) for pair in about],
        "config": config,
    }
    style = (_WEB / "style.css").read_text(encoding="utf-8")
    scripts = "\n".join((_WEB / f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{scripts}}})();\n'
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        # A drawing becomes a PNG through an address that holds it.
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    page = (_WEB / "page.html").read_text(encoding="utf-8")
    parts = {
        "policy": policy,
        "title": _markup(title),
        "style": style,
        "text": _markup(text),
        "data": _embed(data),
        "script": script,
    }
    # In one pass: what is filled in may itself hold what looks like a place to fill.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], page)


def framed(text: str) -> str:
    """A page inside of another one, such as a notebook."""
    return (
        f'<iframe srcdoc="{html.escape(text)}" sandbox="allow-scripts" '
        f'style="width:100%;height:640px;border:0"></iframe>'
    )


def _embed(data: Any) -> str:
    """Data as JSON that cannot end the script element around it."""
    # Lone surrogates, which a tokenizer can yield, have no UTF-8: ASCII writes them as escapes.
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.translate(_ESCAPES)


def _markup(text: str) -> str:
    """Text that shows as it is; lone surrogates, which UTF-8 cannot write, become "?"."""
    return html.escape(text.encode("utf-8", "replace").decode())


def _hash(source: str) -> str:
    digest = hashlib.sha256(source.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
