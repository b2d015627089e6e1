"""What a reader learns from is what it is used for, and costs what it should."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny import READER, tiny_network

from mvg_core import label_readout
from mvg_core.label_reader import LabelReading
from mvg_core.label_readout import LabelMoments
from mvg_core.reader_backends import TorchReader
from mvg_core.training.reader_loss import (
    OF_SCORES,
    UNSEEN,
    around,
    coverage,
    highest_others,
    read_labels,
    reader_costs,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
N_CLASSES = 4


def tiny_reader(device: str = "cpu") -> Any:
    network: Any = tiny_network(READER)
    return network.to(device)


def batch(n_images: int = 4, side: int = 64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (3, N, 1, H, W) and classes (3, N, H, W): of the second episode no prompt shows class 2."""
    random = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, N_CLASSES, (3, n_images, side // 8, side // 8), generator=random)
    classes[1, 1:][classes[1, 1:] == 2] = 0
    classes = classes.repeat_interleave(8, 2).repeat_interleave(8, 3)
    classes = classes.roll(3, 2)  # not in line with the pixels of the scores
    images = classes * 0.2 + 0.3 * torch.rand(classes.shape, generator=random)
    return images[:, :, None], classes


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_images", [2, 4])
def test_training_reads_what_inference_reads(device, n_images):
    network = tiny_reader(device)
    images, classes = batch(n_images)
    with torch.no_grad():
        read = read_labels(network, images.to(device), classes.to(device))
    trained = read.logits.softmax(1).movedim(1, -1).cpu().numpy()
    reading = LabelReading(TorchReader(network, device), (1, 2, 3))
    for number in range(len(images)):
        prompts = LabelMoments.sum([reading.encode(image.numpy(), shown.numpy()) for image, shown in
                                    zip(images[number, 1:, 0], classes[number, 1:], strict=True)])
        inferred = reading.read(images[number, 0].numpy(), prompts)[0]
        assert np.abs(trained[number] - inferred).max() < 1e-4
        assert np.array_equal(read.shown[number].cpu().numpy(), prompts.shown)
    assert read.shown.cpu().tolist() == [[True] * 4, [True, True, False, True], [True] * 4]
    assert trained.std() > 0.1  # not the same everywhere


def test_covered_pixels_and_those_around_are_the_same_as_in_numpy():
    _, classes = batch()
    covered = coverage(classes, N_CLASSES)
    assert covered.shape == (3, 4, N_CLASSES, 16, 16)
    parts = (part.flatten(0, 1) for part in (classes, covered, around(covered)))
    for one, found, near in zip(*parts, strict=True):
        assert np.allclose(found, label_readout.coverage(one.numpy(), N_CLASSES))
        assert np.allclose(near, label_readout.around(found.numpy()), atol=1e-6)


@pytest.mark.parametrize("shown", [(0, 1, 2, 3), (1, 3), (2,)])
def test_others_are_those_that_prompts_show(shown):
    values = torch.randn(1, 4, 2, 6, 6).round()  # with ties
    are_shown = torch.tensor([[number in shown for number in range(4)]])
    found = highest_others(values, are_shown)[0, list(shown)]
    assert np.array_equal(found, label_readout.highest_others(values[0, list(shown)].numpy()))


def test_a_class_that_no_prompt_shows_is_never_read():
    images, classes = batch()
    logits = read_labels(tiny_reader(), images, classes).logits
    assert (logits[1, 2] == UNSEEN).all()
    assert (logits[1].argmax(0) != 2).all()
    assert (classes[1, 0] == 2).any()


def test_what_is_to_be_read_is_not_looked_at():
    images, classes = batch()
    network = tiny_reader()
    with torch.no_grad():
        logits = read_labels(network, images, classes).logits
        other = classes.clone()
        other[:, 0] = 3 - other[:, 0]
        assert torch.equal(read_labels(network, images, other).logits, logits)
        other[:, 1] = 3 - other[:, 1]
        assert not torch.allclose(read_labels(network, images, other).logits, logits, atol=0.1)


def slow_costs(logits: np.ndarray, scores: np.ndarray, classes: np.ndarray, shown: np.ndarray) -> dict[str, float]:
    """Pixel by pixel; shapes as in `LabelsRead`, classes of the queries (B, H, W)."""
    cross_entropy, off, dice = [], [], []
    for episode, right in enumerate(classes):
        pixels = [np.count_nonzero(right == number) for number in range(N_CLASSES)]
        weight = np.array([(n + 50) ** -0.5 if n else 0.0 for n in pixels])
        weight /= sum(w * n for w, n in zip(weight, pixels, strict=True))
        likely = np.exp(logits[episode]) / np.exp(logits[episode]).sum(axis=0)
        cross_entropy.append(0.0)
        off.append(0.0)
        for y, x in np.ndindex(right.shape):
            cross_entropy[-1] -= weight[right[y, x]] * np.log(likely[right[y, x], y, x])
            for number in range(N_CLASSES):
                block = right[y // 4 * 4 : y // 4 * 4 + 4, x // 4 * 4 : x // 4 * 4 + 4]
                wrong = scores[episode, number, 0, y // 4, x // 4] - (block == number).mean()
                off[-1] += weight[right[y, x]] * wrong**2
        for number in range(1, N_CLASSES):
            if pixels[number] and shown[episode, number]:
                overlap = likely[number][right == number].sum()
                dice.append(1 - (2 * overlap + 1) / (likely[number].sum() + pixels[number] + 1))
    return {"cross_entropy": float(np.mean(cross_entropy)), "scores": float(np.mean(off)), "dice": float(np.mean(dice))}


def test_costs_are_those_of_every_pixel_by_itself():
    images, classes = batch(2, 32)
    classes[2, 0][classes[2, 0] == 3] = 1  # a label that prompts show and the query has not
    network = tiny_reader()
    with torch.no_grad():
        costs = {name: float(cost) for name, cost in reader_costs(network, images, classes).items()}
        read = read_labels(network, images, classes)
    expected = slow_costs(read.logits.double().numpy(), read.scores.double().numpy(), classes[:, 0].numpy(),
                          read.shown.numpy())
    total = expected["cross_entropy"] + expected["dice"] + OF_SCORES * expected["scores"]
    assert costs == pytest.approx({**expected, "loss": total}, rel=1e-4)


def test_with_background_alone_there_is_nothing_to_learn():
    images, classes = batch(2, 32)
    with torch.no_grad():
        costs = reader_costs(tiny_reader(), images, torch.zeros_like(classes))
    assert (float(costs["cross_entropy"]), float(costs["dice"])) == (0.0, 0.0)
    assert torch.isfinite(costs["loss"])


@pytest.mark.parametrize("device", DEVICES)
def test_everything_learns_from_prompts_and_query(device):
    images, classes = (part.to(device) for part in batch())
    network = tiny_reader(device)
    images.requires_grad_()
    reader_costs(network, images, classes)["loss"].backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name
    assert images.grad is not None
    assert (images.grad.abs().amax((2, 3, 4)) > 0).all()  # of every image of every episode


@pytest.mark.parametrize("device", DEVICES)
def test_in_low_precision_sums_stay_precise(device):
    images, classes = (part.to(device) for part in batch())
    network = tiny_reader(device)
    with torch.no_grad():
        precise = read_labels(network, images, classes)
        with torch.autocast(device, torch.bfloat16):
            read = read_labels(network, images, classes)
            terms = network(images.flatten(0, 1))[0].unflatten(0, images.shape[:2])
    assert read.logits.dtype == read.scores.dtype == torch.float32
    assert (read.scores - precise.scores).abs().mean() < 0.05
    # From the terms on, all is as if computed in double precision.
    episode = terms[0].double().cpu().numpy()
    prompts = LabelMoments.sum([LabelMoments.of(one, shown.cpu().numpy(), N_CLASSES)
                                for one, shown in zip(episode[1:], classes[0, 1:], strict=True)])
    weights = prompts.fit(TorchReader(network, device).ridge)
    assert np.abs(label_readout.scores(weights, episode[0]) - read.scores[0].cpu().numpy()).max() < 1e-3


def test_images_that_show_their_classes_cost_less_than_those_that_do_not():
    images, classes = batch()
    network = tiny_reader()
    with torch.no_grad():
        plain, hidden = (reader_costs(network, shown, classes) for shown in (images, torch.rand_like(images)))
    assert plain["scores"] < hidden["scores"]
