"""The figures' colours on a light and a dark page, with the contrast that WCAG's AA asks of text."""

from experiments.reporting.style import COLOURS

PAPERS = {"light": "#ffffff", "dark": "#15181c"}
RATIO = 4.5  # WCAG 2.2, 1.4.3: text beside its ground
STEPS = 100
OTHER = "#7A6A8A"  # of networks without a colour of their own


def luminance(colour: str) -> float:
    """Return WCAG's relative luminance of a colour such as "#0072B2"."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Return WCAG's contrast of two colours, from 1 to 21."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def legible(colour: str, paper: str) -> str:
    """Return the colour, mixed with as much black or white as the contrast with the paper needs."""
    towards = 0 if luminance(paper) > 0.5 else 255
    parts = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    for step in range(STEPS + 1):
        mixed = [round(part + (towards - part) * step / STEPS) for part in parts]
        found = "#{:02x}{:02x}{:02x}".format(*mixed)
        if contrast(found, paper) >= RATIO:
            return found
    raise ValueError(f"no mixture of {colour} is legible on {paper}")


def name_of(network: str) -> str:
    """Return the CSS property with a network's colour."""
    known = {"strided": "--strided", "unit_stride": "--twin"}
    if network in known:
        return known[network]
    return f"--net-{[*COLOURS].index(network)}" if network in COLOURS else "--net-other"


def properties(theme: str) -> dict[str, str]:
    """Return the CSS properties with the colours of all networks on a theme's paper."""
    colours = {name_of(network): colour for network, colour in COLOURS.items()}
    colours["--net-other"] = OTHER
    return {name: legible(colour, PAPERS[theme]) for name, colour in colours.items()}
