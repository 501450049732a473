"""How many random examples a test draws: fewer in `make test` than in `make test-all`."""

from hypothesis import HealthCheck, settings

# Percent of the usual number, by the name of the profile (pytest --hypothesis-profile=...).
PROFILES = {"fast": 5, "stridenet": 10, "all": 100, "fuzz": 1000}


def register_profiles() -> None:
    """Make the profiles known; a test without `examples` draws as many examples as the percentage."""
    for name, percent in PROFILES.items():
        settings.register_profile(name, deadline=None, max_examples=percent)


def examples(usual: int) -> settings:
    """Return settings for a test that draws `usual` examples in `make test-all`."""
    drawn = max(5, usual * settings.default.max_examples // 100)
    return settings(max_examples=drawn, suppress_health_check=[HealthCheck.too_slow])
