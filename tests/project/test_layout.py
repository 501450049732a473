"""The picture of the house in docs/develop.md is true: every module, and the floors of make check."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
Floors = dict[str, list[set[str]]]  # by folder: the names of each row, the upper rows first


def drawn(text: str) -> Floors:
    """The rows of the picture: those of a package from above, and what its folders have."""
    found: Floors = {}
    for line in text.split("```text\n")[1].split("```")[0].splitlines():
        names = line.partition("·")[0].split()
        if not line.startswith(" "):
            package = names[0].rstrip("/")
        elif names[0].endswith(":"):
            found[f"{package}/{names[0][:-1]}"] = [set(names[1:])]
        else:
            found.setdefault(package, []).append({name.rstrip("/") for name in names})
    return found


def built() -> dict[str, set[str]]:
    """The modules and packages of each package in the tree."""
    found = {}
    for package in ("stridenet", "experiments"):
        for init in (ROOT / package).rglob("__init__.py"):
            folder = init.parent
            found[str(folder.relative_to(ROOT))] = {
                path.stem
                for path in folder.iterdir()
                if (path.suffix == ".py" or (path / "__init__.py").exists())
                and path.name != "__init__.py"
            }
    return found


def wrong(text: str) -> dict[str, set[str]]:
    """What the picture and the tree do not agree on, by folder."""
    picture, tree = drawn(text), built()
    shown = {folder: set().union(*rows) for folder, rows in picture.items()}
    folders = shown.keys() | tree.keys()
    apart = {f: shown.get(f, set()) ^ tree.get(f, set()) for f in folders}
    return {folder: names for folder, names in apart.items() if names}


def test_the_picture_has_every_module_and_no_other() -> None:
    text = (ROOT / "docs/develop.md").read_text()
    assert wrong(text) == {}
    assert wrong(text.replace(" taps ", " tips ")) == {"stridenet": {"taps", "tips"}}
    assert wrong(text.replace("  twin  ", "  twin turret  ")) == {"stridenet": {"turret"}}


def test_the_floors_are_those_of_make_check() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    floors = {
        contract["containers"][0]: [set(row.split(" | ")) for row in contract["layers"]]
        for contract in settings["contracts"]
        if contract["type"] == "layers"
    }
    picture = drawn((ROOT / "docs/develop.md").read_text())
    for package in ("stridenet", "experiments"):
        assert picture[package] == floors[package]
