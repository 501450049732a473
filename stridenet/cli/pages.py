"""The pages of --help: what a command does, examples, and options by what they are for."""

import re
import textwrap
from collections.abc import Sequence
from typing import Any

import click

from stridenet.cli.options import Part, flag
from stridenet.cli.printing import WIDTH
from stridenet.cli.texts import COMMAND, Page

INDENT = 26  # of an option's text


class Command(click.Command):
    """A command whose help lists its options by what they are for."""

    def __init__(self, name: str, page: Page, parts: Sequence[Part], **more: Any) -> None:
        super().__init__(name, short_help=page.short, **more)
        self.page, self.parts = page, parts

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Usage, what it does, examples, options."""
        self.format_usage(ctx, formatter)
        formatter.write(f"\n{_paragraphs(self.page.about)}\n\n{_examples(self.page.examples)}")
        of_parts = {name for part in self.parts for name in part.arguments}
        options = {str(p.name): p for p in self.get_params(ctx) if isinstance(p, click.Option)}
        own = [option for name, option in options.items() if name not in of_parts]
        entries = [_entry(_names(ctx, option), option.help or "") for option in own]
        formatter.write(f"\nOptions:\n{''.join(entries)}")
        for part in self.parts:
            entries = [
                _entry(_names(ctx, options[name]), _described(argument))
                for name, argument in part.arguments.items()
            ]
            formatter.write(f"\n{part.title}:\n{''.join(entries)}")


class Group(click.Group):
    """The command itself, whose help has examples."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Usage, what it does, examples, commands."""
        formatter.write("Usage: stridenet COMMAND MODEL [OPTIONS]\n")
        formatter.write(
            f"\n{_paragraphs(COMMAND.about)}\n\n{_examples(COMMAND.examples)}\nCommands:\n"
        )
        for name, command in self.commands.items():
            formatter.write(_entry(name, f"{command.short_help}: stridenet {name} --help"))
        formatter.write("\nOptions:\n")
        for option in self.get_params(ctx):
            if isinstance(option, click.Option):
                formatter.write(_entry(_names(ctx, option), option.help or ""))


def _names(ctx: click.Context, option: click.Option) -> str:
    """How an option is typed."""
    record = option.get_help_record(ctx)
    return record[0] if record else ""


def _described(argument: Any) -> str:
    """The text of an argument, with its choices and its default."""
    text = re.sub(r"`(\w+)`", lambda match: flag(match[1]), argument.text)
    if argument.choices and not all(f'"{choice}"' in text for choice in argument.choices):
        text = f"{' | '.join(argument.choices)}. {text}"
    if argument.default not in (None, True, False):
        text += f" Default: {argument.default}."
    elif argument.default is True:
        text += " Done by default."
    return text


def _paragraphs(text: str) -> str:
    return "\n\n".join(textwrap.fill(" ".join(p.split()), WIDTH) for p in text.split("\n\n"))


def _examples(text: str) -> str:
    return f"Examples:\n{textwrap.indent(text, '  ')}\n"


def _entry(names: str, text: str) -> str:
    """An option and its text beside it, or below it where it is long."""
    blank = " " * INDENT
    first = f"  {names}".ljust(INDENT)
    if len(first) > INDENT - 1 and not first.endswith(" "):
        first = f"{first}\n{blank}"
        lines = textwrap.wrap(text, WIDTH - INDENT) or [""]
        return f"{first}{f'{chr(10)}{blank}'.join(lines)}\n"
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=blank) + "\n"
