"""stridenet/rules/README.md adds a rule; its code works as it is written there."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stridenet import StrideEliminationError
from stridenet.rules import registry, rounding
from stridenet.rules.rounding import BOUNDS

README = Path(__file__).resolve().parents[2] / "stridenet" / "rules" / "README.md"


def code() -> list[str]:
    """The blocks of code: the rule, a line of each table, the test."""
    return re.findall(r"^```(?:python)?\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


def line_of(block: str, module: Any, known: dict[str, Any]) -> Any:
    """The entry that a block adds to the table of a module."""
    (entry,) = eval(f"[{block}]", {**vars(module), **known})
    return entry


def test_the_rule_of_the_readme_works_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    rule, line_of_registry, line_of_rounding, test = code()
    made: dict[str, Any] = {}
    exec(rule, made)
    exec(test, made)
    with pytest.raises(StrideEliminationError, match="flip"):
        made["test_a_flip_comes_before_a_stride"]()  # it has no rule yet

    flip, operations = line_of(line_of_registry, registry, made)
    assert not set(operations) & set(registry.RULES)
    for operation in operations:
        monkeypatch.setitem(registry.RULES, operation, [flip])
    bound, bounded = line_of(line_of_rounding, rounding, made)
    assert list(bounded) == list(operations)
    for operation in bounded:
        monkeypatch.setitem(BOUNDS, operation, bound)
    made["test_a_flip_comes_before_a_stride"]()


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda x: torch.flip(x, (1, 3)), "it reverses more than positions"),
        (lambda x: torch.flip(x.movedim(1, 3), (2,)).movedim(3, 1), "without a rule comes before"),
    ],
    ids=["channels", "channels last"],
)
def test_the_rule_of_the_readme_declines_what_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch, forward: Callable, reason: str
) -> None:
    rule, line_of_registry, _, test = code()
    made: dict[str, Any] = {}
    exec(rule, made)
    exec(test, made)
    flip, _ = line_of(line_of_registry, registry, made)
    monkeypatch.setitem(registry.RULES, torch.flip, [flip])
    monkeypatch.setattr(
        made["Flipped"], "forward", lambda self, x: self.after(forward(self.before(x)))
    )
    with pytest.raises(StrideEliminationError, match=reason):
        made["test_a_flip_comes_before_a_stride"]()


def test_the_rule_of_the_readme_has_fifteen_lines_or_so() -> None:
    rule, *_ = code()
    lines = [line for line in rule[rule.index("class ") :].splitlines() if line.strip()]
    assert len(lines) <= 15


def test_every_operation_of_the_registry_has_a_bound_on_its_rounding() -> None:
    assert set(registry.RULES) - set(BOUNDS) == set()


def test_every_bound_is_of_an_operation_of_the_registry() -> None:
    assert set(BOUNDS) - set(registry.RULES) == set()


def test_the_bound_of_an_operation_stands_in_one_line_of_the_table() -> None:
    operations = [operation for _, several in rounding._TABLE for operation in set(several)]
    assert len(operations) == len(set(operations))
