"""convert_file, plan_file, verify_files and benchmark_files. No torch is imported."""

import contextlib
import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import onnx

from stridenet import host
from stridenet.errors import InputError, NotEqualError
from stridenet.layers_plan import ConvertedLayer, LayersPlan
from stridenet.onnx.files.comparing import (
    Feed,
    compare_files,
    feeds_of,
    require_names,
    sizes_of,
)
from stridenet.onnx.files.conversion import Conversion, Done, converted
from stridenet.onnx.files.grafting import graft, pairs_of
from stridenet.onnx.files.matching import layouts_of, match_files
from stridenet.onnx.files.options import Kernel, Rearrange, checked_options
from stridenet.onnx.files.proof import NodeProof, prove, require_untouched
from stridenet.onnx.files.reading import (
    check_external_data,
    external_place,
    is_external,
    parsed,
    read,
    tensors_of,
)
from stridenet.onnx.files.reports import ConversionReport, FilesReport, FileTimes
from stridenet.onnx.files.running import require_onnxruntime, session
from stridenet.onnx.files.writing import write, write_host_layout
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
    options = checked_options(only, pooling, rearrange, kernel)
    if check:
        require_onnxruntime()
    source, target = Path(source), Path(target)
    file = read(source)
    _check_target(source, target, file.proto)
    if check:
        require_names(file.proto, sizes)
        _check_with_onnx(source, InputError)
    before = Counter(map(str, strided_nodes(all_nodes(file.proto))))
    pairs = pairs_of(file)
    conversion = converted(file, options)
    graft(conversion, pairs)
    kept = _left(conversion, before, file.proto)
    operators = Counter(node.op_type for node in all_nodes(file.proto))
    with _room(target), staged(target) as folder:
        path = folder / target.name
        write(conversion, path, f"{target.name}.data")
        layout = write_host_layout(conversion, folder / layout_path(target).name)
        proofs: tuple[NodeProof, ...] = ()
        comparison = None
        if check:
            _check_with_onnx(path, NotEqualError)
            written = parsed(path)
            _left(conversion, before, written)
            original = parsed(source)
            require_untouched(conversion, original, source.parent, written, folder)
            proofs = prove(conversion, written, folder)
            hosted = [d.converted.layout for d in conversion.done if d.converted.layout]
            fed = fed_by({layout["name"]: layout for layout in hosted})
            comparison = compare_files(source, path, original, sizes, fed)
        data = target.with_name(f"{target.name}.data")
        has_data = (folder / data.name).exists()
    return ConversionReport(
        target,
        data if has_data else None,
        layout_path(target) if layout else None,
        tuple(done.step.name for done in conversion.done),
        kept,
        dict(operators.most_common()),
        proofs,
        comparison,
    )


def plan_file(
    source: PathLike,
    *,
    only: Sequence[str] | None = None,
    pooling: bool = False,
    rearrange: Rearrange = "reshape",
    kernel: Kernel = "minimal",
) -> LayersPlan:
    """What convert_file would make of `source`, node by node: filters, maps and multiply-adds.

    only, pooling, rearrange, kernel: as of convert_file.

    Maps and multiply-adds, of one image, are known where the file has sizes. Nothing is written, and no
    weight read. Raises what convert_file raises.
    """
    options = checked_options(only, pooling, rearrange, kernel)
    file = read(source)
    weights = sum(prod(t.dims) for t in file.proto.graph.initializer)
    conversion = converted(file, options)
    layers = tuple(_planned(done) for done in conversion.done)
    more = sum(prod(e.size(w.shape)) for w, e in conversion.expanded.lazy.values())
    less = {w.value: prod(w.shape) for w, _ in conversion.expanded.lazy.values()}
    gone = sum(n for value, n in less.items() if not value.uses())
    return LayersPlan(
        layers, Counts(weights, weights + more - gone), any(each.maps for each in layers)
    )


def verify_files(
    original: PathLike,
    converted: PathLike,
    *,
    sizes: Mapping[str, Sequence[int]] | None = None,
) -> FilesReport:
    """Whether the file `converted` computes what `original` does, and which strides are left in it.

    sizes: of inputs, by their names, for the comparison of the whole files; those that are free are
        guessed.

    Each node of the original is looked for in the other file: as it is, byte by byte, or as nodes that
    make its output of its input. The latter are run with one impulse in each phase of each channel,
    which every filter answers with its own numbers, so that equal means equal to the bit. Where nodes
    are not found, as after another tool's optimisations, the outputs decide. Raises InputError for a
    file that cannot be read.
    """
    require_onnxruntime()
    file, path = read(original), Path(converted)
    other = parsed(path)
    check_external_data(path, other)
    require_names(file.proto, sizes)
    for each in (file.path, path):
        _check_with_onnx(each, InputError)
    found = match_files(file, other, path)
    fed = fed_by(layouts_of(path))
    comparison = compare_files(file.path, path, file.proto, sizes, fed)
    strided = tuple(strided_nodes(all_nodes(other)))
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
    """onnxruntime's time of both files on the CPU, as it optimises them, in turn.

    sizes: of inputs, by their names; those that are free are guessed.
    rounds: runs of each file that count; one of each before them does not.
    threads: that onnxruntime may use.

    A file whose input the host rearranges is given that input's phase form, the making of which is not
    counted. Raises InputError for files that onnxruntime does not run.
    """
    if rounds < 1 or threads < 1:
        raise InputError(f"rounds={rounds}, threads={threads}: both are at least 1")
    proto = parsed(Path(original))
    require_names(proto, sizes)
    fed = fed_by(layouts_of(Path(converted)))
    last = ""
    for feed in feeds_of(proto, sizes):
        try:
            sessions = [session(Path(path), True, threads) for path in (original, converted)]
            feeds = [feed, fed(feed)]
            for each, given in zip(sessions, feeds, strict=True):
                each.run(None, given)
            break
        except InputError:
            raise
        except Exception as error:  # onnxruntime's errors have no common class
            last = reason(error)
    else:
        raise InputError(f"onnxruntime does not run both files: {last}; sizes=… gives the inputs'")
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for taken, each, given in zip(times, sessions, feeds, strict=True):
            start = time.perf_counter()
            each.run(None, given)
            taken.append(1000 * (time.perf_counter() - start))
    return FileTimes(tuple(times[0]), tuple(times[1]), sizes_of(feed), threads)


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
            read_from.add(external_place(source.parent, tensor)[0].resolve())
    for place in (target, target.with_name(f"{target.name}.data"), layout_path(target)):
        if place.resolve() in read_from:
            raise InputError(
                f"{target} would overwrite {place}, which is read from; write to another name"
            )


@contextlib.contextmanager
def _room(target: Path) -> Iterator[None]:
    """What the disk refuses, in one line."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise InputError(
                f"{target}: no room on its disk; free some, or write elsewhere"
            ) from error
        raise InputError(
            f"{target} cannot be written: {error.strerror}; write elsewhere"
        ) from error


# What a file must pass


def _check_with_onnx(path: Path, kind: type[ValueError]) -> None:
    """Let onnx's own checker read a file."""
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:  # of the checker, or of protobuf
        way = "; check=False converts it nevertheless" if kind is InputError else ""
        raise kind(f"{path} is not valid ONNX: {reason(error)}{way}") from error


def _left(conversion: Conversion, before: Counter[str], proto: Any) -> tuple[StridedNode, ...]:
    """Strides that are left: none but those that were not asked to go."""
    left = tuple(strided_nodes(all_nodes(proto)))
    asked = Counter(str(node) for node in strided_nodes(d.original for d in conversion.done))
    if Counter(map(str, left)) != before - asked:
        extra = Counter(map(str, left)) - (before - asked)
        raise NotEqualError(f"a stride is left that was to go: {', '.join(extra) or 'none'}")
    return left


def fed_by(layouts: Mapping[str, dict[str, Any]]) -> Callable[[Feed], Feed]:
    """From the original's inputs to those that the host rearranges."""

    def fed(feed: Feed) -> Feed:
        return {
            name: host.rearrange(layout_of([layouts[name]]), array) if name in layouts else array
            for name, array in feed.items()
        }

    return fed


# The plan


def _planned(done: Done) -> ConvertedLayer:
    sizes = [size for size in done.sizes if size is not None]
    maps: tuple[Any, ...] = ()
    given = [w.outputs(n) for w, n in zip(done.windows, sizes, strict=False)]
    whole = len(sizes) == len(done.sizes)
    if done.converted.filter is None:
        if whole and done.channels:
            maps = (((done.channels, *sizes), (done.channels, *given)),)
        return ConvertedLayer(done.step.name, done.original.op_type, maps=maps)
    weight, expansion, _ = done.converted.filter
    wide = expansion.size(weight.shape)
    zeros = prod(wide) - prod(weight.shape)
    costs = None
    if whole:
        group = done.step.site.attributes.get("group", 1)
        maps = (((weight.shape[1] * group, *sizes), (weight.shape[0], *given)),)
        costs = Counts(prod(weight.shape) * prod(given), prod(wide) * prod(given))
    return ConvertedLayer(
        done.step.name, done.original.op_type, weight.shape, wide, zeros, maps, costs
    )
