"""Batches: which images, in which order, how standardised, from which stream of random numbers."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiments.runs.data import Dataset
from experiments.runs.examples import Examples, normalise
from experiments.runs.networks import initialise
from experiments.runs.training import batches, generator, train
from stridenet import eliminate_stride
from stridenet.errors import InputError
from tests.experiments.tiny_networks import CPU, RECIPE, Recorder, run, strided


def numbered(n: int) -> Tensor:
    """Images of 10x10, each full of its own index."""
    return torch.arange(float(n)).reshape(n, 1, 1, 1).expand(n, 1, 10, 10).clone()


# Examples and their numbers


def test_examples_are_taken_in_the_asked_order_and_channels_last() -> None:
    inputs, labels = torch.randn(9, 3, 4, 5), torch.arange(9)
    taken, taken_labels = Examples(inputs, labels, CPU).take(torch.tensor([7, 0, 7, 3]))
    assert torch.equal(taken, inputs[[7, 0, 7, 3]])
    assert taken_labels.tolist() == [7, 0, 7, 3]
    assert taken.is_contiguous(memory_format=torch.channels_last)
    assert not taken.is_contiguous()


def test_batches_are_all_examples_in_order_the_last_one_smaller() -> None:
    inputs, labels = torch.randn(9, 3, 4, 5), torch.arange(9)
    given = Examples(inputs, labels, CPU)
    batches = list(given.batches(4))
    assert [len(batch) for batch, _ in batches] == [4, 4, 1]
    assert torch.equal(torch.cat([batch for batch, _ in batches]), inputs)
    assert torch.cat([numbers for _, numbers in batches]).tolist() == list(range(9))
    assert batches[0][0].is_contiguous(memory_format=torch.channels_last)
    assert len(given) == 9


def test_standardised_means_by_the_training_images_alone() -> None:
    def bytes_of(n: int, least: int, most: int) -> Tensor:
        return torch.randint(least, most, (n, 1, 4, 4), generator=generator(0, "x")).byte()

    labels = torch.zeros(20).long()
    train_images, test_images = bytes_of(20, 0, 60), bytes_of(20, 100, 250)
    data = Dataset(train_images, labels, test_images[:5], labels[:5], test_images, labels)
    splits = normalise(data, "standardised")
    training_images = splits["training"][0]
    assert training_images.dtype == torch.float32
    assert abs(training_images.mean()) < 1e-6
    assert abs(training_images.std() - 1) < 1e-6
    assert splits["test"][0].mean() > 3  # by the same mean and deviation, not its own
    for name, bytes_ in {"test": test_images, "validation": test_images[:5]}.items():
        values = train_images.double()
        expected = (bytes_.double() - values.mean()) / values.std()
        torch.testing.assert_close(splits[name][0].double(), expected, rtol=1e-5, atol=1e-5)


def test_scaled_divides_by_256_and_nothing_else(tiny_data: Dataset) -> None:
    splits = normalise(tiny_data, "scaled")
    assert torch.equal(splits["training"][0] * 256, tiny_data.train_images.float())
    assert torch.equal(splits["test"][0] * 256, tiny_data.test_images.float())


def test_labels_stay_with_their_images_and_an_empty_split_is_left_out(tiny_data: Dataset) -> None:
    splits = normalise(tiny_data, "scaled")
    assert list(splits) == ["training", "validation", "test"]
    assert torch.equal(splits["validation"][1], tiny_data.validation_labels)
    empty = replace(tiny_data, validation_images=tiny_data.test_images[:0],
                    validation_labels=tiny_data.test_labels[:0])  # fmt: skip
    assert list(normalise(empty, "scaled")) == ["training", "test"]


# Batches


def orders(seed: int, network: nn.Module, inputs: Tensor) -> list[int]:
    recorder = Recorder(network)
    given = Examples(inputs, torch.zeros(len(inputs)).long(), CPU)
    train(recorder, {"training": given}, replace(RECIPE, learning_rate=1e-6), seed, CPU)
    return recorder.order


def test_a_seed_gives_both_networks_the_same_order_of_examples() -> None:
    images = numbered(150)
    network = strided()
    twin = eliminate_stride(network, (1, 10, 10))
    order = orders(3, network, images)
    assert orders(3, twin.network, twin.rearrange(images)) == order
    assert orders(4, strided(), images) != order


def test_an_epoch_takes_whole_batches_of_an_order_of_its_own_and_no_example_twice() -> None:
    order = orders(0, strided(), numbered(150))
    assert len(order) == 2 * 128  # what is left behind two batches of 64 is dropped
    first, second = set(order[:128]), set(order[128:])
    assert len(first) == len(second) == 128
    assert first | second <= set(range(150))
    assert first != second  # another rest is dropped
    assert order[:128] != sorted(first)


def test_batches_depend_on_the_seed_and_the_number_of_examples_alone() -> None:
    def places(seed: int = 0, examples: int = 150, start: int = 0, **changes: Any) -> list[int]:
        return torch.cat([*batches(replace(RECIPE, **changes), seed, examples, start, 4)]).tolist()

    plain = places()
    other: dict[str, Any] = {"epochs": 9, "evaluations": 3, "learning_rate": 1.0, "name": "other",
                             "schedule": "constant", "optimizer": "adam"}  # fmt: skip
    assert all(places(**{key: value}) == plain for key, value in other.items())
    assert places(start=3) == plain[3 * 64 :]
    assert places(batch_size=32) == plain[:128]  # the same order, cut elsewhere
    assert places(seed=1) != plain != places(examples=151)


def test_a_batch_larger_than_the_data_is_an_error_with_both_numbers(tiny_data: Dataset) -> None:
    with pytest.raises(InputError, match=r"recipe\.batch_size=151 is more than the 150 training"):
        run(strided(), tiny_data, batch_size=151)
    assert run(strided(), tiny_data, batch_size=150).steps == 2


@pytest.mark.parametrize("scheme", ["pytorch", "xavier"])
def test_drawing_weights_does_not_shift_the_order(scheme: str) -> None:
    order = orders(5, strided(), numbered(150))
    network = strided()
    initialise(network, scheme, generator(5, "weights"))
    torch.rand(1000)  # nor does what else draws from torch's own generator
    assert orders(5, network, numbered(150)) == order


def test_what_is_drawn_by_a_seed_comes_from_streams_of_their_own() -> None:
    purposes = ("order of epoch 0", "order of epoch 1", "weights", "training images")
    streams = [generator(seed, purpose) for seed in (0, 1, 10) for purpose in purposes]
    starts = {tuple(torch.rand(3, generator=stream).tolist()) for stream in streams}
    assert len(starts) == len(streams)
