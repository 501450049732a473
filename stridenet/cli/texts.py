"""What the pages of --help say of each command, and their examples."""

from dataclasses import dataclass

from stridenet.cli.models import FORMS


@dataclass(frozen=True)
class Page:
    """What --help says of a command."""

    short: str  # beside its name
    about: str  # paragraphs
    examples: str  # a line each


COMMAND = Page(
    "",
    f"""\
Networks with strides as equal networks without: what it costs (plan), the network in a file
(convert), and whether two are equal (verify).

MODEL is {FORMS}. The exit code is 0 if all is done and equal, 1 if not equal, 2 if something was wrong
with what was typed or read, in which case nothing is written.""",
    """\
stridenet plan net.onnx
stridenet convert net.onnx -o unit.onnx
stridenet verify net.onnx unit.onnx
stridenet convert my_file.py:my_network --input-size 3,64,64 -o net.onnx""",
)
PLAN = Page(
    "What a conversion costs",
    """\
What a conversion of MODEL would cost, layer by layer, the dearest layers first: maps, filters, weights,
structural zeros and multiply-adds. Nothing is written or computed.""",
    """\
stridenet plan net.onnx --pooling
stridenet plan net.onnx --all --csv layers.csv
stridenet plan torchvision.models:resnet18 --input-size 3,224,224
stridenet plan my_file.py:my_network --input-size 3,64,64 --theorem 2""",
)
CONVERT = Page(
    "A network without strides, in a checked file",
    """\
Write MODEL with unit strides, in a file that appears only after it has passed its checks.

An ONNX file becomes an ONNX file, for which PyTorch is not needed. A PyTorch model becomes an ONNX file
(OUT.onnx), a program of torch.export (OUT.pt2) or a state_dict (OUT.pt), for which the lines that load
it are printed. Layer by layer, these files take any batch and any size that the network takes; as a
whole, any batch of images of one size; with --batch, one batch and one size.""",
    """\
stridenet convert net.onnx -o unit.onnx
stridenet convert net.onnx -o unit.onnx --pooling --rearrange two-step --kernel odd
stridenet convert torchvision.models:resnet18 --input-size 3,224,224 -o unit.onnx
stridenet convert my_file.py:my_network --args '{"width": 8}' --weights my.pt \\
    --input-size 3,64,64 -o unit.pt2
stridenet convert stridenet.zoo:lenet --input-size 1,28,28 --theorem 2 -o lenet.onnx""",
)
VERIFY = Page(
    "Whether two networks are equal",
    """\
Whether two networks are equal, and which strides are left: of two ONNX files the second one, which any
tool may have made of the first; or of a PyTorch model what this library makes of it, layer by layer
against a bound on rounding, with noise on all weights, in float64.""",
    """\
stridenet verify net.onnx unit.onnx
stridenet verify net.onnx unit.onnx --benchmark --threads 2
stridenet verify torchvision.models:resnet18 --input-size 3,224,224 --pooling
stridenet verify stridenet.zoo:lenet --input-size 1,28,28 --theorem 2""",
)
