"""Lets the pages of docs/, whose links are made for reading in the repository, stand in the site.

A link out of docs/ leads to the file in the repository; a picture out of docs/ is copied into the site.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PICTURE = re.compile(r"(?<=\]\()\.\./((?:[\w.-]+/)*[\w.-]+\.(?:png|svg))(?=\))")
OUTSIDE = re.compile(r"(?<=\]\()\.\./([^()\s]*)(?=\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pictures that pages show from elsewhere in the repository, under pictures/."""
    shown = {
        path
        for page in Path(config.docs_dir).glob("*.md")
        for path in PICTURE.findall(page.read_text())
    }
    for path in sorted(shown):
        files.append(File.generated(config, f"pictures/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Turn links out of docs/ into links to the copied pictures, or to the repository's files."""
    markdown = PICTURE.sub(r"pictures/\1", markdown)
    return OUTSIDE.sub(lambda link: f"{config.repo_url}/blob/main/{link[1]}", markdown)
