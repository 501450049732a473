"""What a training step costs: both networks, our loop and a plain one, beside a matrix product.

All are timed in turn, round by round, so that whatever else the machine does meets all alike; what is
published are medians of the ratios within a round (benchmark_table).
"""

import itertools
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from experiments.reporting.formats import NETWORKS, PRINTED, of_rounds, spreads
from experiments.reporting.published import PAPER
from experiments.reporting.section import Section
from experiments.runs.data import generator, load, load_official
from experiments.runs.examples import Examples, Split, normalise
from experiments.runs.machine import choose_device, circumstances, prepare
from experiments.runs.networks import build_network, build_strided, initialise, require_scores
from experiments.runs.training import synchronise, train
from experiments.settings.identity import model_identity
from experiments.settings.schema import BenchmarkConfig, DataConfig, ReportConfig
from experiments.studies.table2 import is_the_papers
from stridenet.cli import torchvision_import
from stridenet.elimination import plan_elimination
from stridenet.errors import InputError
from stridenet.twin import UnitStrideNetwork

Measured = dict[str, Any]  # the content of benchmark.json
MATRIX = 2048  # rows and columns of the product
PRODUCTS = 3  # of them a round
Chunk = Callable[[], float]  # does some steps, and returns the seconds of one


def benchmark(config: BenchmarkConfig) -> Measured:
    """Time everything.

    Returns the seconds of every round, and what a reader needs to judge them.
    """
    prepare(config.threads)
    device = choose_device(config.device)
    data = load(config.data, Path(config.outputs) / "data")
    training = normalise(data, config.recipe.pixels)["training"]
    ours = {name: _our_network(config, name, training, device) for name in NETWORKS}
    rounds = _time_in_turn(config, ours, training, device)
    input_size = config.data.input_size
    plan = plan_elimination(build_strided(config.model, input_size), input_size)
    adds = [layer.multiply_adds for layer in plan.layers if layer.weight_size]
    return {
        "model": model_identity(config),
        "paper": is_the_papers(plan, config.data.name),
        "multiply_adds": dict(zip(NETWORKS, map(sum, zip(*adds, strict=True)), strict=True)),
        "first_layer_multiply_adds": dict(zip(NETWORKS, adds[0], strict=True)),
        "images": len(training.images),
        "matrix": MATRIX,
        "seconds": rounds,  # of a step, of a product, of the rearrangement of all images
        "operators": {name: _operators(each) for name, each in ours.items()},
        **circumstances(config, device),
        "config": asdict(config),
    }


def _our_network(
    config: BenchmarkConfig, name: str, training: Split, device: torch.device
) -> Chunk:
    """Return what does some steps of our loop on one of the networks."""
    layers, images = _network(config, name), training.images
    if isinstance(layers, UnitStrideNetwork):
        images, layers = layers.rearrange(images), layers.network
    layers.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    examples = Examples(images, training.labels, device)
    return _our_loop(layers, examples, _at_its_rate(config, name), device)


def _time_in_turn(
    config: BenchmarkConfig, ours: dict[str, Chunk], training: Split, device: torch.device
) -> list[dict[str, float]]:
    """Return the seconds of everything that is timed, in turn, for each round."""
    matrix = torch.rand(MATRIX, MATRIX, device=device)
    twin = _network(config, "unit_stride")
    assert isinstance(twin, UnitStrideNetwork)
    timed: dict[str, Chunk] = {
        **{f"ours_{name}": ours[name] for name in NETWORKS},
        "matrix_product": lambda: seconds(lambda: matrix @ matrix, PRODUCTS, device),
        "rearrangement": lambda: seconds(lambda: twin.rearrange(training.images), 1, device),
    }
    # The plain loop has a process of its own, which is not set up as ours is.
    with ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), _start_plain, (config, device)
    ) as plain:
        for name in NETWORKS:
            timed[f"plain_{name}"] = partial(_run_plain_chunk, plain, name)
        for chunk in timed.values():
            chunk()  # the first time is slower
        return [
            {name: chunk() for name, chunk in timed.items()}
            for _ in tqdm(range(config.rounds), desc="rounds", disable=None)
        ]


def _network(config: BenchmarkConfig, name: str) -> nn.Module:
    model = replace(config.model, eliminate_stride=name == "unit_stride", max_pooling=False)
    network = build_network(model, config.data.input_size)
    require_scores(network, config.data)
    initialise(network, config.recipe.initialisation, generator(0, "weights"))
    return network


def _at_its_rate(config: BenchmarkConfig, name: str) -> BenchmarkConfig:
    """Give the recipe this network's own learning rate, where it has one for each network."""
    rate = config.recipe.rate_for(name)
    return replace(config, recipe=replace(config.recipe, learning_rate=rate))


def _our_loop(
    layers: nn.Module, examples: Examples, config: BenchmarkConfig, device: torch.device
) -> Chunk:
    recipe = replace(config.recipe, epochs=None, steps=config.steps)

    def chunk() -> float:
        history = train(layers, {"training": examples}, recipe, 0, device, title=None)
        return history.wall_seconds / history.steps

    return chunk


_plain_loops: dict[str, Chunk] = {}  # in the process of the plain loop


class PlainImages(Dataset[tuple[Any, int]]):
    """Gives the official training images one by one, as torchvision's data sets give them.

    Each is made a PIL image, resized where the settings want another size, and normalised by the data
    set's published mean and standard deviation, as in PyTorch's MNIST example.
    """

    def __init__(self, data: DataConfig, folder: Path) -> None:
        torchvision_import.watch()
        from torchvision import transforms

        images, labels = load_official(data, folder, train=True)
        self._images, self._labels = images.movedim(1, -1).numpy(), labels.tolist()
        facts = data.facts
        steps = [transforms.ToTensor(), transforms.Normalize(facts.mean, facts.deviation)]
        if [*images.shape[-2:]] != data.image_size:
            steps.insert(0, transforms.Resize(data.image_size))
        self._transform = transforms.Compose([transforms.ToPILImage(), *steps])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._transform(self._images[index]), self._labels[index]


def _start_plain(config: BenchmarkConfig, device: torch.device) -> None:
    """Set up a loop as in PyTorch's MNIST example: a DataLoader of PIL images, default layout."""
    torch.set_num_threads(config.threads)
    data = PlainImages(config.data, Path(config.outputs) / "data")
    loader = DataLoader(data, batch_size=config.recipe.batch_size, shuffle=True)
    for name in NETWORKS:
        network = _network(config, name).to(device)
        own = _at_its_rate(config, name)
        _plain_loops[name] = _plain_loop(network, _batches(loader), own, device)


def _batches(loader: "DataLoader[Any]") -> Iterator[Any]:
    """Yield batches epoch after epoch, so that one chunk alone pays for the start of an epoch."""
    while True:
        yield from loader


def _plain_loop(
    network: nn.Module, batches: Iterator[Any], config: BenchmarkConfig, device: torch.device
) -> Chunk:
    recipe = config.recipe
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )

    def chunk() -> float:
        began = time.perf_counter()
        for images, labels in itertools.islice(batches, config.steps):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
        synchronise(device)
        return (time.perf_counter() - began) / config.steps

    return chunk


def _plain_chunk(name: str) -> float:
    return _plain_loops[name]()


def _run_plain_chunk(plain: ProcessPoolExecutor, name: str) -> float:
    return plain.submit(_plain_chunk, name).result()


def seconds(work: Callable[[], object], times: int, device: torch.device) -> float:
    """Return the mean seconds of doing the work once, when it is done so many times in a row."""
    synchronise(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    synchronise(device)
    return (time.perf_counter() - began) / times


def _operators(chunk: Chunk) -> dict[str, float]:
    """Return the share of the processor's time of each of torch's operators, the largest first."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        chunk()
    spent = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    whole = sum(spent.values())
    return {
        name: spent[name] / whole for name in sorted(spent, key=spent.__getitem__, reverse=True)
    }


def benchmark_table(measured: Measured) -> pd.DataFrame:
    """Return the table of what experiments.benchmark measured: median and quartiles over rounds.

    Its columns are the networks, and their ratio in each round, unit stride over strided.
    """
    seconds = pd.DataFrame(measured["seconds"])
    batch = measured["config"]["recipe"]["batch_size"]
    rate = 2 * measured["matrix"] ** 3 / seconds.matrix_product

    def share(network: str) -> "pd.Series[float]":
        # Forward, and twice as much backward, but no gradient of the images.
        adds = (
            3 * measured["multiply_adds"][network] - measured["first_layer_multiply_adds"][network]
        )
        return 2 * adds * batch / seconds[f"ours_{network}"] / rate

    def fixed(strided: float, unit_stride: float) -> dict[str, float]:
        ratio = unit_stride / strided
        return {"strided_median": strided, "unit_stride_median": unit_stride, "ratio_median": ratio}

    ours, plain = ([seconds[f"{loop}_{n}"] for n in NETWORKS] for loop in ("ours", "plain"))
    once = 1000 * seconds.rearrangement
    rows = {
        "multiply-adds": fixed(*(measured["multiply_adds"][n] for n in NETWORKS)),
        **(
            {"paper's training (s)": fixed(*PAPER.paper_training_seconds)}
            if measured["paper"]
            else {}
        ),
        "our loop (ms)": of_rounds(*(1000 * each for each in ours)),
        "plain loop (ms)": of_rounds(*(1000 * each for each in plain)),
        "plain loop / ours": of_rounds(*(p / o for p, o in zip(plain, ours, strict=True))),
        "share of peak (%)": of_rounds(*(100 * share(n) for n in NETWORKS)),
        "rearrangement (ms)": {
            key.replace("strided", "unit_stride"): value
            for key, value in of_rounds(once, once).items()
            if key.startswith("strided")
        },
    }
    return pd.DataFrame([{"quantity": quantity, **row} for quantity, row in rows.items()])


def benchmark_for_readers(table: pd.DataFrame) -> pd.DataFrame:
    """Return medians with their quartiles in one entry."""
    titles = {network: PRINTED[network] for network in NETWORKS}
    entries = spreads(table, {**titles, "ratio": "ratio"})
    entries["ratio"] = entries["ratio"].where(~table.quantity.str.contains("/|share"), "")
    return pd.DataFrame({"": table.quantity, **entries})


OPERATORS = 4  # how many of torch's operators the caption names, with their shares of the time


def benchmark_section(measured: Measured) -> Section:
    """Return what experiments.benchmark measured as a table of the report."""
    config, table = measured["config"], benchmark_table(measured)
    operators = "; ".join(
        f"{PRINTED[network]}: "
        + ", ".join(f"{name} {share:.0%}" for name, share in list(shares.items())[:OPERATORS])
        for network, shares in measured["operators"].items()
    )
    caption = (
        "Milliseconds of a training step, in our loop and in a plain one in the style of PyTorch's "
        f"MNIST example; median (quartiles) of {config['rounds']} rounds of {config['steps']} steps "
        f"each, all in turn, batches of {config['recipe']['batch_size']}. Peak: the rate of "
        f"multiply-adds in a product of matrices of {measured['matrix']} rows and columns. "
        f"Rearrangement: of all {measured['images']:,} images, once before training; the plain loop "
        "does it batch by batch. Where the time "
        f"of a step goes: {operators}."
    )
    about = (
        f"On {measured['device_name']}, {measured['threads']} thread(s), "
        f"torch {measured['versions']['torch']}."
    )
    readable = benchmark_for_readers(table)
    return Section("benchmark", "Benchmark", caption, about, table, readable)


def benchmark_sections(config: ReportConfig) -> list[Section]:
    """Return the table of what was measured of this network, if anything was."""
    path = Path(config.outputs) / "benchmark.json"
    if not path.exists():
        return []
    try:
        measured = json.loads(path.read_text())
        same = measured["model"] == model_identity(config)
        return [benchmark_section(measured)] if same else []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged ({error}); delete it, or `make bench` again"
        ) from error
