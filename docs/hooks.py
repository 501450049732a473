"""Lets the pages of docs/, whose links are made for reading in the repository, stand in the site.

A link out of docs/ leads to the file in the repository, a picture out of docs/ is copied into the site,
and the notebook becomes a page. `Docstrings` is for mkdocstrings.
"""

import json
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PICTURE = re.compile(r"(?<=\]\()\.\./((?:[\w.-]+/)*[\w.-]+\.(?:png|svg))(?=\))")
OUTSIDE = re.compile(r"(?<=\]\()\.\./([^()\s]*)(?=\))")
ARGUMENT = re.compile(r"^(\w+(?:, \w+)*): ", re.MULTILINE)
DOCTEST = re.compile(r"^>>> .*?(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the notebook as a page, and the pictures that pages show from elsewhere, in pictures/."""
    notebook = json.loads((ROOT / "docs" / "tour.ipynb").read_text())
    files.append(File.generated(config, "tour.md", content=_page(notebook)))
    pages = Path(config.docs_dir).glob("*.md")
    for path in sorted({path for page in pages for path in PICTURE.findall(page.read_text())}):
        files.append(File.generated(config, f"pictures/{path}", abs_src_path=str(ROOT / path)))
    return files


def _page(notebook: dict[str, Any]) -> str:
    """Return a notebook as Markdown."""
    cells = [("".join(cell["source"]), cell["cell_type"]) for cell in notebook["cells"]]
    texts = [f"```python\n{text}\n```" if kind == "code" else text for text, kind in cells]
    return "\n\n".join([*texts, "[This page as a notebook](tour.ipynb)"])


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Turn links out of docs/ into links to the copied pictures, or to the repository's files."""
    if page.file.src_uri != "tour.md":
        markdown = markdown.replace("](tour.ipynb)", "](tour.md)")
    markdown = PICTURE.sub(r"pictures/\1", markdown)
    return OUTSIDE.sub(lambda link: f"{config.repo_url}/blob/main/{link[1]}", markdown)


class Docstrings(griffe.Extension):
    """Makes code blocks of the examples in docstrings, and a list of what is said of arguments."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a function or class."""
        if obj.docstring:
            text = ARGUMENT.sub(r"- `\1`: ", obj.docstring.value)
            obj.docstring.value = DOCTEST.sub(lambda found: f"```pycon\n{found[0]}\n```", text)
