"""The commands and what they take."""

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

from stridenet.cli import texts
from stridenet.cli.ending import ended, signals
from stridenet.cli.options import CONVERT, PLAN, VERIFY, Part, options_of
from stridenet.cli.pages import Command, Group
from stridenet.cli.values import Choice, JsonObject, Size

WORK = {
    "plan": "stridenet.cli.planning",
    "convert": "stridenet.cli.converting",
    "verify": "stridenet.cli.verifying",
}
COMPLETE = "_STRIDENET_COMPLETE"  # set by a shell that completes what is typed


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, those of the process by default. Returns its exit code."""
    typed = sys.argv[1:] if arguments is None else [*arguments]
    with signals() as stopped:
        try:
            app = application()
            if COMPLETE in os.environ:
                app.main(typed, prog_name="stridenet")  # answers the shell, and ends there
            # Not by app.main, which has exit codes of its own.
            with app.make_context("stridenet", typed) as ctx:
                code = int(app.invoke(ctx) or 0)
            sys.stdout.flush()
            return code
        except click.exceptions.Exit as done:  # after --help and --version
            sys.stdout.flush()
            return done.exit_code
        except BaseException as error:
            if isinstance(error, SystemExit) and COMPLETE in os.environ:
                raise
            return ended(error, stopped)


def _of_models() -> list[click.Option]:
    """Options of PyTorch models, that are of the command alone."""
    return [
        click.Option(
            ["--input-size"], type=Size(), multiple=True,
            help="Of one image, without the batch, as in 3,224,224; once for each input of a "
            "PyTorch model, which is run on random numbers.",
        ),
        click.Option(
            ["--theorem"], type=Choice(["1", "2"]), default="1", metavar="1|2",
            help="1 converts each layer of a PyTorch model by itself, 2 the whole. Default: 1.",
        ),
        click.Option(
            ["--args"], type=JsonObject(),
            help="Arguments of the function that makes the network, as in '{\"num_classes\": 10}'.",
        ),
        click.Option(
            ["--weights"], metavar="FILE",
            help="The network's state_dict, of which nothing is executed; without it, weights are "
            "as the function makes them.",
        ),
        click.Option(
            ["--seed"], type=click.IntRange(0, 2**32 - 1), default=0, metavar="N",
            help="Of weights and inputs that are drawn. Default: 0.",
        ),
    ]  # fmt: skip


def _command(name: str, page: texts.Page, parts: Sequence[Part], own: Iterable[Any]) -> Command:
    params = [click.Argument(["model"]), *own, *_of_models(), *options_of(parts)]
    return Command(name, page, parts, params=params, callback=_callback(name))


def _callback(name: str) -> Callable[..., int]:
    def call(**_: Any) -> int:
        # Each imports what it needs, and no more: an ONNX file needs no torch.
        work = importlib.import_module(WORK[name])
        return int(getattr(work, name)(click.get_current_context()))

    return call


def _version(ctx: click.Context, _: Any, wanted: bool) -> None:
    if wanted:
        import stridenet

        click.echo(f"stridenet {stridenet.__version__}")
        ctx.exit()


def _no_command(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def application() -> Group:
    """The command with all that is below it."""
    plan = [
        click.Option(["--all", "every"], is_flag=True, help="All layers, not the dearest ten alone."),
        click.Option(
            ["--csv"], is_flag=False, flag_value="-", metavar="[FILE.csv]",
            help="All layers as comma-separated values with exact numbers, in a file; without a "
            "file, instead of the table.",
        ),
    ]  # fmt: skip
    out = click.Option(
        ["-o", "--output"], required=True, metavar="OUT.onnx|.pt2|.pt", help="The file to write."
    )
    verify = [
        click.Argument(["converted"], required=False),
        click.Option(["--all", "every"], is_flag=True, help="All layers of a PyTorch model."),
        click.Option(
            ["--benchmark"], is_flag=True,
            help="Time both ONNX files in onnxruntime: median, quartiles and ratio.",
        ),
    ]  # fmt: skip
    commands = [
        _command("plan", texts.PLAN, PLAN, plan),
        _command("convert", texts.CONVERT, CONVERT, [out]),
        _command("verify", texts.VERIFY, VERIFY, verify),
    ]
    version = click.Option(
        ["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_version,
        help="Show the version.",
    )  # fmt: skip
    return Group(
        "stridenet",
        commands={c.name: c for c in commands if c.name},
        params=[version],
        callback=click.pass_context(_no_command),
        invoke_without_command=True,
    )
