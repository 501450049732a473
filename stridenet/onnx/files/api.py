"""Converts, plans, compares and times ONNX files: the public functions, which import no torch."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import onnx

from stridenet import host
from stridenet.errors import InputError, NotEqualError
from stridenet.files import disk_errors
from stridenet.layers_plan import ConvertedLayer, LayersPlan
from stridenet.onnx.files.comparing import Feed, compare_files, feeds_of, require_names, sizes_of
from stridenet.onnx.files.conversion import ConvertedFile, ConvertedNode, convert_graph
from stridenet.onnx.files.grafting import graft, graph_pairs
from stridenet.onnx.files.matching import layouts_of, match_files
from stridenet.onnx.files.options import Kernel, Rearrange, checked_file_options
from stridenet.onnx.files.proof import NodeProof, prove, require_untouched
from stridenet.onnx.files.reading import (
    check_external_data,
    external_data,
    is_external,
    parse,
    read_onnx,
    tensors_of,
)
from stridenet.onnx.files.reports import ConversionReport, FilesReport, FileTimes
from stridenet.onnx.files.running import require_onnxruntime, session
from stridenet.onnx.files.writing import write_host_layout, write_onnx
from stridenet.onnx.layout import layout_of, layout_path
from stridenet.onnx.staging import staged
from stridenet.onnx.strides import StridedNode, all_nodes, reason, strided_nodes
from stridenet.sizes import Counts

PathLike = str | os.PathLike[str]


def convert_file(
    source: PathLike,
    target: PathLike,
    *,
    only: Sequence[str] | None = None,
    pooling: bool = False,
    rearrange: Rearrange = "reshape",
    kernel: Kernel = "minimal",
    check: bool = True,
    sizes: Mapping[str, Sequence[int]] | None = None,
) -> ConversionReport:
    """Write the ONNX file `source` as one of unit strides, which passes its proof before it appears.

    only: convert these nodes alone, named by themselves or by one of their outputs.
    pooling: MaxPool and AveragePool, too; those that `only` names are converted anyway.
    rearrange: how a map is taken apart into phases: "reshape" (reshape, transpose, reshape: rank 6 for
        two axes), "two-step" (the same one axis after the other, of rank 5 at most), "space_to_depth"
        (ONNX's own operator; two axes of one stride), or "host" (a convolution of an input reads its
        phase form instead, which the host makes as TARGET.layout.json says; all others: "reshape").
    kernel: "minimal", or "odd": odd sizes with symmetric padding in the convolution itself, and no Pad
        where the map is made of whole blocks. Where padding depends on a size that is not known
        (auto_pad=SAME), and of MaxPool in any case, the Pad stays.
    check: prove each converted node, and compare the whole files.
    sizes: of inputs, by their names, for the comparison; those that are free are guessed.

    The opset, names of inputs and outputs, and all that is not converted stay as they are. Numbers that
    lie beside the source lie in TARGET.data beside the target. Raises InputError for a file or an
    argument that cannot be worked on, StrideEliminationError for nodes that have no unit-stride form
    here, and NotEqualError if the proof fails. Nothing is written then.
    """
    options = checked_file_options(only, pooling, rearrange, kernel)
    if check:
        require_onnxruntime()
    source, target = Path(source), Path(target)
    file = read_onnx(source)
    _check_target(source, target, file.proto)
    if check:
        require_names(file.proto, sizes)
        _check_with_onnx(source, InputError)
    strides = Counter(map(str, _strided(all_nodes(file.proto))))
    pairs = graph_pairs(file)
    conversion = convert_graph(file, options)
    graft(conversion, pairs)
    kept = _strides_left(conversion, strides, file.proto)
    operators = Counter(node.op_type for node in all_nodes(file.proto))
    proofs: tuple[NodeProof, ...] = ()
    comparison = None
    data, layout = target.with_name(f"{target.name}.data"), layout_path(target)
    with disk_errors(target), staged(target) as folder:
        write_onnx(conversion, folder / target.name, data.name)
        write_host_layout(conversion, folder / layout.name)
        if check:
            written = _check_written(conversion, strides, folder / target.name)
            proofs = prove(conversion, written, folder)
            comparison = compare_files(
                source, folder / target.name, parse(source), sizes, host_feed(conversion.layouts)
            )
        has_data = (folder / data.name).exists()
    return ConversionReport(
        path=target,
        data=data if has_data else None,
        layout=layout if conversion.layouts else None,
        converted=tuple(done.planned.name for done in conversion.done),
        kept=kept,
        operators=dict(operators.most_common()),
        proofs=proofs,
        comparison=comparison,
    )


def plan_file(
    source: PathLike,
    *,
    only: Sequence[str] | None = None,
    pooling: bool = False,
    rearrange: Rearrange = "reshape",
    kernel: Kernel = "minimal",
) -> LayersPlan:
    """Plan what convert_file would make of `source`, node by node: filters, maps, multiply-adds.

    only, pooling, rearrange, kernel: as of convert_file.

    Maps and multiply-adds, of one image, are known where the file has sizes. Nothing is written, and no
    weight read. Raises what convert_file raises.
    """
    options = checked_file_options(only, pooling, rearrange, kernel)
    file = read_onnx(source)
    before = sum(prod(tensor.dims) for tensor in file.proto.graph.initializer)
    conversion = convert_graph(file, options)
    layers = tuple(_converted_layer(done) for done in conversion.done)
    filters = conversion.new_filters.pending.values()
    strided = {each.weight.value: prod(each.weight.shape) for each in filters}
    gone = sum(count for value, count in strided.items() if not value.uses())
    after = before - gone + sum(prod(each.shape) for each in filters)
    return LayersPlan(layers, Counts(before, after), any(each.maps for each in layers))


def verify_files(
    original: PathLike,
    converted: PathLike,
    *,
    sizes: Mapping[str, Sequence[int]] | None = None,
) -> FilesReport:
    """Tell whether the file `converted` computes what `original` does, and which strides it has left.

    sizes: of inputs, by their names, for the comparison of the whole files; those that are free are
        guessed.

    Each node of the original is looked for in the other file: as it is, byte by byte, or as nodes that
    make its output of its input. The latter are run with one impulse in each phase of each channel,
    which every filter answers with its own numbers, so that equal means equal to the bit. Where nodes
    are not found, as after another tool's optimisations, the outputs decide. Raises InputError for a
    file that cannot be read.
    """
    require_onnxruntime()
    file, path = read_onnx(original), Path(converted)
    other = parse(path)
    check_external_data(path, other)
    require_names(file.proto, sizes)
    for each in (file.path, path):
        _check_with_onnx(each, InputError)
    found = match_files(file, other, path)
    comparison = compare_files(file.path, path, file.proto, sizes, host_feed(layouts_of(path)))
    strided = tuple(_strided(all_nodes(other)))
    return FilesReport(
        tuple(found.proofs), tuple(found.unequal), tuple(found.unmatched), strided, comparison
    )


def benchmark_files(
    original: PathLike,
    converted: PathLike,
    *,
    sizes: Mapping[str, Sequence[int]] | None = None,
    rounds: int = 10,
    threads: int = 1,
) -> FileTimes:
    """Time both files in onnxruntime on the CPU, as it optimises them, in turn.

    sizes: of inputs, by their names; those that are free are guessed.
    rounds: runs of each file that count; one of each before them does not.
    threads: that onnxruntime may use.

    A file whose input the host rearranges is given that input's phase form, the making of which is not
    counted. Raises InputError for files that onnxruntime does not run.
    """
    if rounds < 1 or threads < 1:
        raise InputError(f"rounds={rounds}, threads={threads}: both are at least 1")
    proto = parse(Path(original))
    require_names(proto, sizes)
    rearrange = host_feed(layouts_of(Path(converted)))
    last = ""
    for feed in feeds_of(proto, sizes):
        try:
            runs = [
                partial(session(Path(original), True, threads).run, None, feed),
                partial(session(Path(converted), True, threads).run, None, rearrange(feed)),
            ]
            for run in runs:
                run()
            break
        except InputError:
            raise
        except Exception as error:  # onnxruntime's errors have no common class
            last = reason(error)
    else:
        raise InputError(f"onnxruntime does not run both files: {last}; sizes=… gives the inputs'")
    times = [[_milliseconds(run) for run in runs] for _ in range(rounds)]
    ours, theirs = zip(*times, strict=True)
    return FileTimes(ours, theirs, sizes_of(feed), threads)


def _milliseconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


# Where a file may be written


def _check_target(source: Path, target: Path, proto: Any) -> None:
    """Raise InputError where writing would destroy what is read, or cannot be."""
    if target.is_dir():
        raise InputError(f"{target} is a folder; name the file, as in {target / 'net.onnx'}")
    if target.exists() and not target.is_file():
        raise InputError(f"{target} is no regular file; name another, as in net.onnx")
    read_from = {source.resolve()}
    for tensor in tensors_of(proto):
        if is_external(tensor):
            read_from.add(external_data(source.parent, tensor).file.resolve())
    for place in (target, target.with_name(f"{target.name}.data"), layout_path(target)):
        if place.resolve() in read_from:
            raise InputError(
                f"{target} would overwrite {place}, which is read from; write to another name"
            )


# What a file must pass


def _check_with_onnx(path: Path, kind: type[ValueError]) -> None:
    """Let onnx's own checker read a file."""
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:  # of the checker, or of protobuf
        way = "; check=False converts it nevertheless" if kind is InputError else ""
        raise kind(f"{path} is not valid ONNX: {reason(error)}{way}") from error


def _check_written(conversion: ConvertedFile, strides: Counter[str], path: Path) -> Any:
    """Return the written file as protobuf has it, after onnx's checker and beside the original.

    Raises NotEqualError where it has strides that were to go, or anything else that is not converted
    is not as in the original.
    """
    _check_with_onnx(path, NotEqualError)
    written = parse(path)
    _strides_left(conversion, strides, written)
    # The original is read again, as grafting has changed the protobuf that was read first.
    original = parse(conversion.file.path)
    require_untouched(conversion, original, conversion.file.folder, written, path.parent)
    return written


def _strided(nodes: Iterable[Any]) -> Iterator[StridedNode]:
    """Yield the nodes with strides under their own names, which `only` takes."""
    return strided_nodes(nodes, by_module=False)


def _strides_left(
    conversion: ConvertedFile, strides: Counter[str], proto: Any
) -> tuple[StridedNode, ...]:
    """Return the nodes with strides in a converted file.

    strides: the nodes with strides in the original. Raises NotEqualError unless those that are left
    are all of these but for the converted ones.
    """
    left = tuple(_strided(all_nodes(proto)))
    converted = Counter(str(node) for node in _strided(d.original for d in conversion.done))
    expected = strides - converted
    if Counter(map(str, left)) != expected:
        extra = Counter(map(str, left)) - expected
        raise NotEqualError(f"a stride is left that was to go: {', '.join(extra) or 'none'}")
    return left


def host_feed(layouts: Mapping[str, dict[str, Any]]) -> Callable[[Feed], Feed]:
    """Return a function from the original's inputs to those that the host rearranges.

    layouts: of the inputs that it rearranges, by their names.
    """

    def rearrange(feed: Feed) -> Feed:
        return {
            name: host.rearrange(layout_of([layouts[name]]), array) if name in layouts else array
            for name, array in feed.items()
        }

    return rearrange


# The plan


def _converted_layer(done: ConvertedNode) -> ConvertedLayer:
    """Return the plan's row of a node. Its maps and multiply-adds need sizes that the file has."""
    name, operator, filter_ = done.planned.name, done.original.op_type, done.replacement.filter
    sizes = [size for size in done.sizes if size is not None]
    known = len(sizes) == len(done.sizes)
    outputs = [w.outputs(size) for w, size in zip(done.windows, sizes, strict=False)]
    if filter_ is None:
        maps = (((done.channels, *sizes), (done.channels, *outputs)),)
        return ConvertedLayer(name, operator, maps=maps if known and done.channels else ())  # type: ignore[arg-type]
    strided = filter_.weight.shape
    unit_stride = filter_.expansion.size(strided)
    zeros = prod(unit_stride) - prod(strided)
    if not known:
        return ConvertedLayer(name, operator, strided, unit_stride, zeros)
    group = done.planned.site.attributes.get("group", 1)
    map_ = ((strided[1] * group, *sizes), (strided[0], *outputs))
    costs = Counts(prod(strided) * prod(outputs), prod(unit_stride) * prod(outputs))
    return ConvertedLayer(name, operator, strided, unit_stride, zeros, (map_,), costs)
