"""A page with nothing but the explorer."""

from pathlib import Path

FILES = Path(__file__).resolve().parents[2] / "experiments" / "page"


def standalone() -> str:
    """The explorer's three files in one page, as the report has them."""
    script, style, body = (
        (FILES / f"explorer.{kind}").read_text(encoding="utf-8") for kind in ("js", "css", "html")
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Explorer</title>'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        "<style>body { margin: 16px; font-family: system-ui, sans-serif; background: #fff } "
        f"@media (prefers-color-scheme: dark) {{ body {{ background: #161615 }} }} {style}</style>"
        f"{body}<script>{script}</script>"
        '<script>Explorer.mount(document.getElementById("explorer"))</script></html>'
    )
