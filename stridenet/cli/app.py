"""Defines the commands, what they take and what their help says, and runs them."""

import os
import sys
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import shell_complete

from stridenet.cli.ending import exit_code_of, stoppable
from stridenet.cli.models import FORMS
from stridenet.cli.options import CONVERT, PLAN, VERIFY, Command

COMPLETE = "_STRIDENET_COMPLETE"  # a shell that completes a command sets it


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default the process's, and return its exit code."""
    words = sys.argv[1:] if arguments is None else [*arguments]
    if COMPLETE in os.environ:
        return shell_complete(app, {}, "stridenet", COMPLETE, os.environ[COMPLETE])
    try:
        with stoppable():
            # app.main would end broken pipes and unforeseen errors with exit codes of its own.
            with app.make_context("stridenet", words) as ctx:
                code = int(app.invoke(ctx) or 0)
            sys.stdout.flush()
            return code
    except click.exceptions.Exit as done:  # after --help and --version
        sys.stdout.flush()
        return done.exit_code
    except BaseException as error:
        return exit_code_of(error)


def _show_version(ctx: click.Context, _: Any, wanted: bool) -> None:
    if wanted:
        from stridenet import __version__

        click.echo(f"stridenet {__version__}")
        ctx.exit()


# The functions that do the work are imported where they are called: an ONNX file needs no torch, and
# `--help` needs neither torch nor onnx. `\b` keeps click from filling the lines of the examples.


@click.group(
    "stridenet",
    invoke_without_command=True,
    options_metavar="",
    subcommand_metavar="COMMAND MODEL [OPTIONS]",
    help=f"""Convert networks with strides into equal networks without: what it costs (plan), the
    network in a file (convert), and whether two networks are equal (verify).

    MODEL is {FORMS}. The exit code is 0 if all is done and equal, 1 if not equal, 2 if something was
    wrong with what was typed or read, in which case nothing is written.

    \b
    Examples:
    stridenet plan net.onnx
    stridenet convert net.onnx -o unit.onnx
    stridenet verify net.onnx unit.onnx
    stridenet convert my_file.py:my_network --input-size 3,64,64 -o net.onnx""",
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version,
    help="Show the version.",
)  # fmt: skip
@click.pass_context
def app(ctx: click.Context) -> None:
    """Show the help where no command was typed."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@app.command(cls=Command, parts=PLAN, short_help="Show what a conversion costs.")
@click.argument("model")
@click.option("--all", "every", is_flag=True, help="Show all layers, not the dearest ten alone.")
@click.option(
    "--csv", is_flag=False, flag_value="-", metavar="[FILE.csv]",
    help="Write all layers as comma-separated values with exact numbers into a file; without a "
    "file, show them instead of the table.",
)  # fmt: skip
@click.pass_context
def plan(ctx: click.Context, /, **_: Any) -> int:
    """Show what a conversion of MODEL would cost, layer by layer, the dearest layers first: maps,
    filters, weights, structural zeros and multiply-adds. Nothing is written or computed.

    \b
    Examples:
    stridenet plan net.onnx --pooling
    stridenet plan net.onnx --all --csv layers.csv
    stridenet plan torchvision.models:resnet18 --input-size 3,224,224
    stridenet plan my_file.py:my_network --input-size 3,64,64 --theorem 2
    """
    from stridenet.cli import planning

    return planning.plan(ctx)


@app.command(cls=Command, parts=CONVERT, short_help="Write a network without strides into a file.")
@click.argument("model")
@click.option(
    "-o", "--output", required=True, metavar="OUT.onnx|.pt2|.pt", help="The file to write."
)
@click.pass_context
def convert(ctx: click.Context, /, **_: Any) -> int:
    """Write MODEL with unit strides, in a file that appears only after it has passed its checks.

    An ONNX file becomes an ONNX file, for which PyTorch is not needed. A PyTorch model becomes an ONNX
    file (OUT.onnx), a program of torch.export (OUT.pt2) or a state_dict (OUT.pt), for which the lines
    that load it are printed. Converted layer by layer, these files take any batch and any size that
    the network takes; converted as a whole, any batch of images of one size; with --batch, one batch
    and one size.

    \b
    Examples:
    stridenet convert net.onnx -o unit.onnx
    stridenet convert net.onnx -o unit.onnx --pooling --rearrange two-step --kernel odd
    stridenet convert torchvision.models:resnet18 --input-size 3,224,224 -o unit.onnx
    stridenet convert my_file.py:my_network --args '{"width": 8}' --weights my.pt \\
        --input-size 3,64,64 -o unit.pt2
    stridenet convert stridenet.zoo:lenet --input-size 1,28,28 --theorem 2 -o lenet.onnx
    """
    from stridenet.cli import converting

    return converting.convert(ctx)


@app.command(cls=Command, parts=VERIFY, short_help="Tell whether two networks are equal.")
@click.argument("model")
@click.argument("converted", required=False)
@click.option("--all", "every", is_flag=True, help="Show all layers of a PyTorch model.")
@click.option(
    "--benchmark", is_flag=True,
    help="Time both ONNX files in onnxruntime: median, quartiles and ratio.",
)  # fmt: skip
@click.pass_context
def verify(ctx: click.Context, /, **_: Any) -> int:
    """Tell whether two networks are equal, and which strides are left.

    Two ONNX files are compared, the second of which any tool may have made of the first. A PyTorch
    model is compared with what this library makes of it, layer by layer against a bound on rounding,
    with noise on all weights, in float64.

    \b
    Examples:
    stridenet verify net.onnx unit.onnx
    stridenet verify net.onnx unit.onnx --benchmark --threads 2
    stridenet verify torchvision.models:resnet18 --input-size 3,224,224 --pooling
    stridenet verify stridenet.zoo:lenet --input-size 1,28,28 --theorem 2
    """
    from stridenet.cli import verifying

    return verifying.verify(ctx)
