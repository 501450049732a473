"""The documents point to what is there: files, headings, and in docs/paper.md functions and tests.

In the tables of docs/paper.md, the columns `code`, `tests` and `shown by` have links whose text is a
file's path from the repository's root, each followed by names from that file in backticks.
"""

import ast
import functools
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\[(?P<text>[^][]*)\]\((?P<target>[^()\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def slugs(document: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+?) *$", FENCED.sub("", document), re.MULTILINE)
    made: set[str] = set()
    for heading in headings:
        text = LINK.sub(r"\g<text>", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        numbers = (f"{slug}-{number}" for number in range(1, len(headings)))
        made.add(slug if slug not in made else next(n for n in numbers if n not in made))
    return made


def broken_links(document: Path) -> list[str]:
    """Relative links to files that are not there, or to headings that they do not have."""
    broken = []
    for match in LINK.finditer(FENCED.sub("", document.read_text())):
        path, _, anchor = match["target"].partition("#")
        if ":" in path:  # an address
            continue
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or (anchor and anchor not in slugs(file.read_text())):
            broken.append(match["target"])
    return broken


@functools.cache
def defined(file: Path) -> set[str]:
    """What a Python file defines, its classes' members as Class.member; the words of any other."""
    if file.suffix != ".py":
        return set(re.findall(r"\w+", file.read_text()))
    names = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names.update(prefix + ast.unparse(target) for target in targets)

    visit(ast.parse(file.read_text()).body, "")
    return names


def rows(document: str) -> list[dict[str, str]]:
    """The cells of all tables by the headings of their columns."""
    found = []
    for table in re.findall(r"(?:^\|.*\|\n)+", document, re.MULTILINE):
        heading, _, *lines = [
            [cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()
        ]
        found += [dict(zip(heading, cells, strict=True)) for cells in lines]
    return found


def wrong_references(cell: str, folder: Path) -> list[str]:
    """What a cell of code or tests names and is not there."""
    wrong = []
    text, names = "", set()
    for match in re.finditer(rf"{LINK.pattern}|`(?P<name>[^`]+)`", cell):
        if match["name"]:
            wrong += [f"{text} {match['name']}"] if match["name"] not in names else []
            continue
        text, file = match["text"], (folder / match["target"]).resolve()
        names = defined(file) if file.exists() else set()
        wrong += [text] if file != ROOT / text or not file.exists() else []
    return wrong


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    assert broken_links(document) == []


def test_the_files_that_contributors_are_to_touch_exist() -> None:
    """Whatever has a slash or a file's ending in docs/develop.md; NAME stands for any name."""
    document = FENCED.sub("", (ROOT / "docs/develop.md").read_text())
    spans = re.findall(r"`([\w./]+)`", document)
    paths = [span for span in spans if "/" in span or span.endswith((".md", ".toml", ".yaml"))]
    assert len(paths) > 8
    assert [path for path in paths if not list(ROOT.glob(path.replace("NAME", "*")))] == []


def test_the_names_that_contributors_are_to_look_for_exist() -> None:
    """A name in backticks is one of the code, or of a setting."""
    document = FENCED.sub("", (ROOT / "docs/develop.md").read_text())
    names = {name for name in re.findall(r"`(\w+)`", document) if re.search("[_A-Z]", name)}
    files = [*ROOT.glob("stridenet/**/*.py"), *ROOT.glob("experiments/**/*.py")]
    code = set().union(*map(defined, [*files, *ROOT.glob("tests/**/*.py")]))
    assert len(names) > 20
    assert names - code - {"Conv", "_mean", "_std"} == set()


def test_one_version_number_is_given_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    versions = re.findall(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert [citation["version"], versions[0]] == [project["version"]] * 2
    assert citation["license"] == project["license"]


def test_every_name_in_the_map_of_the_paper_exists() -> None:
    cells = [
        row[heading]
        for row in rows((ROOT / "docs/paper.md").read_text())
        for heading in ("code", "tests", "shown by")
        if heading in row
    ]
    assert len(cells) > 100
    assert [wrong for cell in cells for wrong in wrong_references(cell, ROOT / "docs")] == []


def test_every_test_of_the_papers_statements_is_in_the_map() -> None:
    document = (ROOT / "docs/paper.md").read_text()
    tests = {
        name for name in defined(ROOT / "tests/paper/test_theory.py") if name.startswith("test_")
    }
    missing = {name for name in tests if f"`{name}`" not in document}
    assert missing == {"test_the_paper_shares_no_code_with_what_is_tested_against_it"}


def test_a_wrong_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A *heading*, of `words`\n## Twice\n## Twice\n")
    document = tmp_path / "links.md"
    document.write_text(
        "# Here\n[1](there.md) [2](there.md#a-heading-of-words) [3](#here) [4](https://x.y/z)\n"
        "[5](gone.md) [6](there.md#gone) [7](#gone) [8](there.md#twice-1) [9](there.md#twice-2)\n"
        "```\n[10](in_code.md)\n```\n"
    )
    assert broken_links(document) == ["gone.md", "there.md#gone", "#gone", "there.md#twice-2"]


@pytest.mark.parametrize(
    ("cell", "wrong"),
    [
        ("—", []),
        ("[experiments/paper/theory.py](../experiments/paper/theory.py) `T`, `Layer.s`", []),
        (
            "[experiments/paper/theory.py](../experiments/paper/theory.py) `T`, `t`",
            ["experiments/paper/theory.py t"],
        ),
        (
            "[experiments/paper/theory.py](../stridenet/taps.py) `TapMap`",
            ["experiments/paper/theory.py"],
        ),
        ("[experiments/gone.py](../experiments/gone.py)", ["experiments/gone.py"]),
        ("`T` [Makefile](../Makefile) `zoo`, `gone`", [" T", "Makefile gone"]),
    ],
)
def test_a_wrong_name_is_found(cell: str, wrong: list[str]) -> None:
    assert wrong_references(cell, ROOT / "docs") == wrong
