"""Episodes: what is painted follows from what the prompts show, and a seed always draws the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from miniature import tiny_bank

from mvg_core.training.augmentation import WarpConfig
from mvg_core.training.bank import SliceBank
from mvg_core.training.cutting import SOURCE, TARGET, UNDIRECTED
from mvg_core.training.episodes import KINDS, MAX_LABELS, NEAR, EpisodeConfig, Episodes, EpisodeSampler

FIELDS = [field.name for field in dataclasses.fields(Episodes)]
FAMILIES = ("real", "painted", "restoration")
STILL = WarpConfig(zoom=1.0, rotation_deg=0.0, shift=0.0, scale=0.0, jitter=0.0, elastic=0.0, flip=0.0)


def sampler(bank: SliceBank | None = None, seed: int = 0, **config: Any) -> EpisodeSampler:
    generator = torch.Generator().manual_seed(seed)
    return EpisodeSampler(bank or tiny_bank(), EpisodeConfig(**{"size": 32, **config}), generator)


def episodes_of(family: str, batch: int = 16, n_prompts: int = 2, seed: int = 0, **config: Any) -> Episodes:
    return sampler(None, seed, families={family: 1.0}, **config).sample(batch, n_prompts)


def hand_made_bank(images: np.ndarray, labels: np.ndarray, stack: list[int], group: list[int], subject: list[int]
                   ) -> SliceBank:
    """A bank whose every row is a site of its own, numbered within its stack."""
    stacks = np.array(stack)
    number = np.array([np.sum(stacks[:row] == stacks[row]) for row in range(len(stacks))])
    counts = np.array([np.sum(stacks == value) for value in stacks])
    return SliceBank(
        images=images.astype(np.uint8), labels=labels.astype(np.uint8), dataset=np.zeros(len(stacks), int),
        stack=stacks, group=np.array(group), subject=np.array(subject), site=np.arange(len(stacks)),
        relative=(number / np.maximum(counts - 1, 1)).astype(np.float32), number=number,
        labelled=np.asarray(labels.any((1, 2))), has_image=np.ones(len(stacks), bool), names=np.array(["hand"]))


# --- all families ---


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n_prompts", [1, 3])
def test_shapes_dtypes_and_ranges(family, n_prompts):
    found = episodes_of(family, batch=24, n_prompts=n_prompts)
    b, n = 24, 1 + n_prompts
    assert {name: tuple(getattr(found, name).shape) for name in FIELDS} == {
        "images": (b, n, 1, 32, 32), "labels": (b, n, 3, 32, 32), "weights": (b, n, 1, 32, 32),
        "classes": (b, n, 32, 32), "palette": (b, 1 + MAX_LABELS, 3), "in_palette": (b, 1 + MAX_LABELS), "kinds": (b,)}
    assert {name: getattr(found, name).dtype for name in FIELDS} == {
        "images": torch.float32, "labels": torch.float32, "weights": torch.float32, "classes": torch.int64,
        "palette": torch.float32, "in_palette": torch.bool, "kinds": torch.int64}
    for name in ("images", "labels", "palette"):
        values = getattr(found, name)
        assert torch.isfinite(values).all()
        assert values.min() >= 0.0
        assert values.max() <= 1.0
    assert (found.weights > 0).all()
    assert found.images.flatten(2).std(2).median() > 0.02  # something is to be seen


@pytest.mark.parametrize(("family", "kinds"), [("real", {0}), ("painted", {0}), ("restoration", {1, 2, 3, 4})])
def test_every_family_draws_its_kinds(family, kinds):
    assert KINDS[0] == "segmentation"
    assert set(episodes_of(family, batch=64).kinds.tolist()) == kinds


def test_families_and_kinds_are_drawn_as_often_as_asked_for():
    drawn = sampler(families={"real": 3.0, "painted": 0.0, "restoration": 1.0},
                    kinds={"denoising": 1.0, "inpainting": 0.0, "synthesis": 0.0, "restoration": 1.0}).sample(400, 1)
    counts = np.bincount(drawn.kinds.numpy(), minlength=len(KINDS)) / 400
    assert counts == pytest.approx([0.75, 0.125, 0.0, 0.0, 0.125], abs=0.05)


def test_the_number_of_prompts_is_drawn_for_the_whole_batch():
    drawn = sampler(prompts=(0.5, 0.0, 0.5))
    numbers = [drawn.sample(2).images.shape[1] - 1 for _ in range(30)]
    assert set(numbers) == {1, 3}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_draws_the_same_episodes(family):
    first, again, other = (episodes_of(family, seed=seed) for seed in (5, 5, 6))
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in FIELDS)
    assert not torch.equal(first.images, other.images)


def test_reseeding_starts_the_sequence_of_that_seed():
    one, other = sampler(seed=1), sampler(seed=2)
    one.sample(3)
    for each in (one, other):
        each.reseed(77)
    first, second = one.sample(8), other.sample(8)
    assert all(torch.equal(getattr(first, name), getattr(second, name)) for name in FIELDS)
    one.reseed(78)
    assert not torch.equal(one.sample(8).palette, first.palette)


def test_episodes_can_be_joined_and_moved():
    parts = [episodes_of("real", batch=2), episodes_of("restoration", batch=3)]
    joined = Episodes.cat(parts).to("cpu")
    assert len(joined.kinds) == 5
    assert torch.equal(joined.labels[2:], parts[1].labels)


# --- segmentation: colours ---


@pytest.mark.parametrize("family", ["real", "painted"])
def test_labels_are_painted_in_the_colours_of_the_palette(family):
    found = episodes_of(family)
    for b in range(len(found.kinds)):
        colours = found.palette[b][found.classes[b]].movedim(-1, 1)
        assert torch.equal(found.labels[b], colours)
    assert torch.equal(found.weights[:, :, 0], torch.where(found.classes > 0, 1.0, 0.1))


def test_palettes_have_a_black_background_and_distinct_colours():
    palettes = sampler()._palettes(500)
    assert not palettes[:, 0].any()
    distance = torch.cdist(palettes, palettes) + 9 * torch.eye(1 + MAX_LABELS)
    # Lattice colours lie 0.5 apart; jitter of up to 0.2 a channel may bring two 0.4 closer in one channel.
    assert distance.min() > 0.09
    assert distance[:, 0].min() > 0.25
    assert not torch.equal(palettes[0], palettes[1])
    corners = ((palettes[:, 1:4] - 0.5).abs() > 0.25).all(2).float().mean()
    assert corners > 0.7  # far apart, as the palette of inference


# --- segmentation: classes ---


def test_a_partition_holds_only_labels_that_the_prompts_show():
    labels = torch.zeros(64, 3, 8, 8, dtype=torch.uint8)
    labels[:, 0] = 9  # on the query alone
    labels[:, 1, :4] = 3
    labels[:, 2, 4:] = 200
    table = sampler()._partition(labels, merge=0.0)
    assert table.shape == (64, 256)
    assert set(table.nonzero()[:, 1].tolist()) == {3, 200}
    assert (table.max(1).values >= 1).all()  # at least one label is kept
    assert set(map(tuple, table[:, [3, 200]].tolist())) == {(1, 0), (0, 1), (1, 2), (2, 1)}


def test_a_partition_of_background_is_empty():
    assert not sampler()._partition(torch.zeros(4, 2, 8, 8, dtype=torch.uint8), merge=0.5).any()


def test_classes_are_numbered_without_gaps_and_at_most_as_many_as_there_are_colours():
    labels = torch.arange(100, dtype=torch.uint8).reshape(1, 1, 10, 10).expand(200, 2, -1, -1)
    for merge in (0.0, 1.0):
        table = sampler()._partition(labels, merge)
        assert table.max() <= (MAX_LABELS if merge == 0 else 4)
        for row in table:
            used = row.unique()
            assert used.tolist() == list(range(len(used)))
    assert (table > 0).sum(1).max() > MAX_LABELS  # merged classes hold many labels


@pytest.mark.parametrize("family", ["real", "painted"])
def test_the_query_is_painted_only_in_classes_that_a_prompt_shows(family):
    found = episodes_of(family, batch=64, same_subject=0.5)
    cropped = 0
    for b in range(64):
        shown = set(found.classes[b, 1:].unique().tolist())
        assert set(found.classes[b, 0].unique().tolist()) <= shown | {0}
        in_use = set(found.in_palette[b].nonzero()[:, 0].tolist())
        assert in_use == shown | {0}
        cropped += in_use == {0}
    assert cropped < 16


def test_a_label_that_no_prompt_shows_is_background_in_the_query():
    classes = torch.zeros(1, 2, 4, 4, dtype=torch.int64)
    classes[0, 0, 0], classes[0, 0, 1], classes[0, 1, 2] = 1, 2, 2
    found = sampler()._segmentation(torch.zeros(1, 2, 4, 4), classes)
    assert found.classes[0, 0].tolist() == [[0] * 4, [2] * 4, [0] * 4, [0] * 4]
    assert not found.labels[0, 0, :, 0].any()
    assert found.in_palette[0].nonzero()[:, 0].tolist() == [0, 2]


# --- warps ---


def test_images_and_classes_are_warped_together():
    # An oracle: label maps are their own images.
    drawn = sampler(seed=4)
    maps = drawn._label_maps(8, 2)
    table = drawn._partition(maps, merge=0.0)
    warped, classes = drawn._warp(maps, maps, table)
    assert torch.equal(table.gather(1, warped.flatten(1)).reshape(warped.shape), classes)
    shown = (table.gather(1, maps.flatten(1).long()) > 0).reshape(maps.shape)
    images, classes = drawn._warp(shown.float(), maps, table)
    pure = (images < 1e-6) | (images > 1 - 1e-6)
    assert pure.float().mean() > 0.7
    assert torch.equal(images[pure] > 0.5, classes[pure] > 0)


def test_without_warp_the_slices_of_the_bank_come_back():
    bank = tiny_bank()
    drawn = sampler(warp=STILL)
    rows = np.arange(0, 30).reshape(10, 3)
    images, _ = drawn._warp(drawn.images[rows].float() / 255, None, None)
    torch.testing.assert_close(images, torch.from_numpy(bank.images[rows]).float() / 255, rtol=0, atol=1e-5)


def test_the_size_of_episodes_is_not_tied_to_that_of_the_bank():
    assert episodes_of("real", batch=3, size=48).images.shape[-2:] == (48, 48)


# --- which slices ---


def test_prompts_of_other_subjects_really_are_of_others():
    bank = tiny_bank()
    drawn = sampler(same_subject=0.0)
    rows = drawn._episode_rows(drawn._real, 200, 3)
    assert (bank.subject[rows[:, 0]] != bank.subject[rows[:, 1]]).all()
    assert (bank.group[rows] == bank.group[rows[:, :1]]).all()  # but of the same data set, plane and contrast
    # A further prompt shows another subject than the query or the first prompt, whichever it was drawn for.
    for further in (2, 3):
        subject = bank.subject[rows[:, further]]
        assert ((subject != bank.subject[rows[:, 0]]) | (subject != bank.subject[rows[:, 1]])).all()
    volumes = bank.dataset[rows[:, 0]] == 0
    apart = np.abs(bank.relative[rows[volumes, 0]] - bank.relative[rows[volumes, 1]])
    assert np.median(apart) < 0.06
    assert apart.max() < 0.35


def test_prompts_of_the_same_subject_are_of_the_same_stack():
    bank = tiny_bank()
    drawn = sampler(same_subject=1.0, near=0.0)
    rows = drawn._episode_rows({"mr": drawn._real["mr"]}, 100, 2)
    assert (bank.stack[rows] == bank.stack[rows[:, :1]]).all()


def test_near_prompts_are_near_and_never_the_query_itself():
    count = 40
    images = np.zeros((count, 8, 8))
    labels = np.ones((count, 8, 8))
    bank = hand_made_bank(images, labels, stack=[0] * count, group=[0] * count, subject=[0] * count)
    drawn = sampler(bank, same_subject=1.0, near=1.0)
    rows = drawn._episode_rows(drawn._real, 200, 1)
    steps = np.abs(bank.number[rows[:, 0]] - bank.number[rows[:, 1]])
    assert set(steps) == set(range(1, NEAR + 1))


def test_a_subject_without_others_serves_itself():
    bank = hand_made_bank(np.zeros((3, 8, 8)), np.ones((3, 8, 8)), [0, 0, 0], [0, 0, 0], [0, 0, 0])
    rows = sampler(bank, same_subject=0.0)._episode_rows({"hand": np.arange(3)}, 20, 2)
    assert set(rows.flatten()) == {0, 1, 2}


def test_the_first_prompt_always_shows_a_label():
    labels = np.zeros((10, 8, 8))
    labels[4, 2, 2] = 1
    bank = hand_made_bank(np.zeros((10, 8, 8)), labels, [0] * 5 + [1] * 5, [0] * 10, [0] * 5 + [1] * 5)
    drawn = sampler(bank)
    rows = drawn._episode_rows(drawn._real, 50, 1)
    assert (rows[:, 1] == 4).all()
    assert (rows[:, 0] != 4).any()  # while the query may show that the organ is absent


def test_data_sets_are_drawn_by_their_weights():
    bank = tiny_bank()
    drawn = sampler(dataset_weights={"mr": 0.0, "ct": 3.0})  # pictures: 1
    first = drawn._episode_rows(drawn._real, 400, 1)[:, 1]
    counts = np.bincount(bank.dataset[first], minlength=4) / 400
    assert counts == pytest.approx([0.0, 0.75, 0.0, 0.25], abs=0.06)


def test_label_maps_are_never_drawn_as_images():
    drawn = sampler()
    maps = np.flatnonzero(~drawn.bank.has_image)
    assert "maps" not in drawn._real
    assert "maps" not in drawn._images_only
    assert set(drawn._painted) <= set(maps)


# --- image to image ---


def kind_of(kind: str, batch: int = 12) -> Episodes:
    return episodes_of("restoration", batch, kinds={kind: 1.0})


@pytest.mark.parametrize("kind", KINDS[1:])
def test_image_targets_are_grey_and_have_no_classes(kind):
    found = kind_of(kind)
    assert (found.kinds == KINDS.index(kind)).all()
    assert torch.equal(found.labels[:, :, :1].expand_as(found.labels), found.labels)
    assert not found.classes.any()
    assert not found.in_palette.any()
    assert (found.images - found.labels[:, :, :1]).abs().flatten(1).max(1).values.min() > 0.01  # there is a task
    if kind != "inpainting":
        assert (found.weights == 1).all()


def test_inpainting_shows_the_target_outside_its_holes_and_weighs_the_holes():
    found = kind_of("inpainting")
    holes = found.weights > 1
    assert found.weights.unique().tolist() == pytest.approx([0.3, 3.3])
    assert torch.equal(found.images[~holes], found.labels[:, :, :1][~holes])
    assert holes.any()


def test_synthesis_pairs_co_registered_contrasts():
    bank = tiny_bank()
    drawn = sampler()
    assert set(drawn._contrasts) == {"mr", "ct"}
    rows = drawn._episode_rows(drawn._contrasts, 50, 2)
    others = drawn._other_contrast(rows)
    changed = (others != rows).all(1)
    assert changed.mean() > 0.9
    assert np.array_equal(bank.site[others], bank.site[rows])
    groups = bank.group[others[changed]]
    assert (groups == groups[:, :1]).all()  # one target contrast for the whole episode
    assert (groups[:, 0] != bank.group[rows[changed, 0]]).all()


def test_contrasts_of_a_synthesis_move_together():
    # The second contrast is the negative of the first: both add up to white, except outside the slice.
    rng = np.random.default_rng(0)
    first = np.kron(rng.integers(0, 2, (6, 4, 4)) * 255, np.ones((8, 8)))
    bank = hand_made_bank(np.concatenate([first, 255 - first]), np.zeros((12, 32, 32)), [0] * 6 + [1] * 6,
                          [0] * 6 + [1] * 6, [0] * 12)
    bank = dataclasses.replace(bank, site=np.tile(np.arange(6), 2))
    drawn = sampler(bank)
    found = 0
    for _ in range(40):
        source, target = drawn._synthesis(2, 1)
        found += bool(((source + target - 1).abs() < 1e-3).float().mean() > 0.6)
    assert found > 8  # 45 % of the draws


def test_a_contrast_without_partner_is_its_own_target():
    bank = hand_made_bank(np.zeros((4, 8, 8)), np.zeros((4, 8, 8)), [0] * 4, [0] * 4, [0] * 4)
    rows = np.array([[0, 1], [2, 3]])
    assert np.array_equal(sampler(dataclasses.replace(bank))._other_contrast(rows), rows)


def test_a_bank_without_label_maps_serves_all_families():
    full = tiny_bank()
    kept = np.flatnonzero(full.has_image)
    columns = {field.name: getattr(full, field.name) for field in dataclasses.fields(full)}
    bank = SliceBank(**{name: value if name in ("names", "weights") else value[kept]
                        for name, value in columns.items()})
    assert sampler(bank).sample(24, 1).images.shape[0] == 24


def test_a_bank_without_any_label_serves_image_to_image_tasks():
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32))
    bank = hand_made_bank(images, np.zeros((8, 32, 32)), [0] * 4 + [1] * 4, [0] * 8, [0] * 4 + [1] * 4)
    drawn = sampler(bank, families={"restoration": 1.0}, real_in_restoration=0.3)
    assert all(torch.isfinite(drawn.sample(8, 1).images).all() for _ in range(8))


# --- directed pairs ---


def bank_of_pairs(kind: str = "denoising", n_subjects: int = 2, per_stack: int = 4) -> SliceBank:
    """Sources and, of each, its negative as the target; nothing else."""
    count = n_subjects * per_stack
    rng = np.random.default_rng(0)
    sources = np.kron(rng.integers(1, 3, (count, 4, 4)) * 80, np.ones((8, 8)))
    subjects = [row // per_stack for row in range(count)]
    bank = hand_made_bank(np.concatenate([sources, 255 - sources]), np.zeros((2 * count, 32, 32)),
                          subjects + [number + n_subjects for number in subjects], [0] * count + [1] * count,
                          subjects * 2)
    return dataclasses.replace(bank, site=np.tile(np.arange(count), 2), direction=np.repeat([SOURCE, TARGET], count),
                               kind=np.full(2 * count, KINDS.index(kind)))


@pytest.mark.parametrize("kind", ["denoising", "inpainting", "synthesis"])
def test_the_source_of_a_pair_is_shown_and_its_target_painted(kind):
    drawn = sampler(bank_of_pairs(kind), families={"restoration": 1.0}, kinds={kind: 1.0}, pairs=1.0, warp=STILL)
    found = drawn.sample(24, 2)
    assert (found.kinds == KINDS.index(kind)).all()
    targets = found.labels[:, :, :1]
    torch.testing.assert_close(found.images + targets, torch.ones_like(targets), rtol=0, atol=1e-4)
    sources = {80, 160}
    assert {round(255 * value) for value in found.images.unique().tolist()} <= sources  # never the other way round


def test_pairs_move_together():
    found = sampler(bank_of_pairs(), families={"restoration": 1.0}, kinds={"denoising": 1.0}, pairs=1.0).sample(24, 1)
    both = found.images + found.labels[:, :, :1]
    assert ((both - 1).abs() < 1e-3).float().mean() > 0.6  # but for what lies outside the slices


def test_pairs_are_drawn_as_often_as_asked_for():
    def share(pairs: float, kind: str = "synthesis") -> float:
        drawn = sampler(bank_of_pairs("synthesis"), families={"restoration": 1.0}, kinds={kind: 1.0}, pairs=pairs,
                        warp=STILL)
        found = drawn.sample(300, 1)
        whole = (found.images + found.labels[:, :, :1] - 1).abs().flatten(1).max(1).values < 1e-3
        return whole.float().mean().item()

    assert share(0.0) < 0.05
    assert share(1.0) == 1.0
    assert share(0.5) == pytest.approx(0.5, abs=0.1)
    assert share(1.0, "denoising") < 0.05  # it has no pairs of this kind


def test_sources_that_are_spoilt_are_no_clean_images():
    for kind, clean in (("denoising", {TARGET}), ("inpainting", {TARGET}), ("synthesis", {SOURCE, TARGET})):
        bank = bank_of_pairs(kind)
        drawn = sampler(bank)
        assert set(bank.direction[drawn._images_only["hand"]]) == clean
        assert not drawn._contrasts  # which would be drawn in either direction


def test_only_undirected_contrasts_are_drawn_in_either_direction():
    full = tiny_bank()
    both = dataclasses.replace(full, direction=np.where(full.dataset == 0, SOURCE, UNDIRECTED))
    assert set(sampler(both)._contrasts) == {"ct"}


def test_prompts_of_pairs_are_pairs_of_their_kind():
    bank = bank_of_pairs()
    drawn = sampler(bank, same_subject=0.5)
    rows = drawn._episode_rows(drawn._pairs["denoising"], 100, 2)
    assert (bank.direction[rows] == SOURCE).all()
    targets = drawn._targets(rows)
    assert (bank.direction[targets] == TARGET).all()
    assert np.array_equal(bank.site[targets], bank.site[rows])


def test_an_inpainting_pair_weighs_what_differs():
    bank = bank_of_pairs("inpainting")
    images = bank.images.copy()
    images[len(images) // 2 :] = images[: len(images) // 2]
    images[: len(images) // 2, 8:16, 8:16] = 0
    drawn = sampler(dataclasses.replace(bank, images=images), families={"restoration": 1.0}, kinds={"inpainting": 1.0},
                    pairs=1.0, warp=STILL)
    found = drawn.sample(8, 1)
    holes = torch.zeros(32, 32, dtype=torch.bool)
    holes[8:16, 8:16] = True
    assert torch.equal(found.weights[:, :, 0] > 1, holes.expand(8, 2, -1, -1))
    assert found.weights.unique().tolist() == pytest.approx([0.3, 3.3])


@pytest.mark.parametrize("family", FAMILIES)
def test_without_pairs_their_share_changes_nothing(family):
    first, other = (episodes_of(family, batch=24, pairs=pairs) for pairs in (0.0, 1.0))
    assert all(torch.equal(getattr(first, name), getattr(other, name)) for name in FIELDS)


# --- what a bank has nothing for ---


def test_a_bank_of_pairs_alone_serves_what_it_can():
    found = sampler(bank_of_pairs()).sample(64, 1)
    assert set(found.kinds.tolist()) == {0, 1, 2, 3, 4}  # segmentation of painted label maps
    with pytest.raises(ValueError, match="no slice with an image has labels, and the configuration draws"):
        sampler(bank_of_pairs(), families={"real": 1.0})


def test_a_bank_of_label_maps_alone_serves_what_it_can():
    full = tiny_bank()
    kept = np.flatnonzero(~full.has_image)
    columns = {field.name: getattr(full, field.name) for field in dataclasses.fields(full)}
    bank = SliceBank(**{name: value if name in ("names", "weights") else value[kept]
                        for name, value in columns.items()})
    assert sampler(bank, real_in_restoration=1.0).sample(48, 1).images.shape[0] == 48


def test_data_sets_are_drawn_by_the_weights_of_their_lists_unless_the_configuration_says():
    bank = dataclasses.replace(tiny_bank(), weights=np.array([0.0, 3.0, 1.0, 1.0]))
    for config, expected in (({}, [0.0, 0.75, 0.0, 0.25]), ({"mr": 4.0, "ct": 0.0}, [0.8, 0.0, 0.0, 0.2])):
        drawn = sampler(bank, dataset_weights=config)
        first = drawn._episode_rows(drawn._real, 400, 1)[:, 1]
        assert np.bincount(bank.dataset[first], minlength=4) / 400 == pytest.approx(expected, abs=0.06)


def test_a_data_set_without_weight_is_left_out_of_everything():
    bank = dataclasses.replace(bank_of_pairs(), weights=np.array([0.0]))
    drawn = sampler(bank, families={"restoration": 1.0}, real_in_restoration=1.0)
    assert (drawn._pairs, drawn._images_only) == ({}, {})
    assert drawn.sample(16, 1).images.shape[0] == 16


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"families": {"reel": 1.0}}, "families has no 'reel': use real, painted, restoration"),
        ({"families": {"real": 0.0}}, "weights of families must be 0 or more, and not all 0"),
        ({"kinds": {"denoise": 1.0}}, "kinds has no 'denoise': use denoising, inpainting, synthesis, restoration"),
        ({"kinds": {"denoising": -1.0, "inpainting": 2.0}}, "weights of kinds must be 0 or more"),
        ({"dataset_weights": {"mr": -1.0}}, "weights of data sets must be 0 or more"),
        ({"pairs": 1.5}, "pairs is a probability, 0 to 1, got 1.5"),
        ({"near": -0.1}, "near is a probability"),
    ],
)
def test_a_configuration_that_cannot_be_drawn_from_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        EpisodeConfig(**config)


# --- drafts, and the size of what is shown ---


def test_a_draft_is_the_query_with_a_label_a_little_wrong():
    plain = episodes_of("painted", batch=64, n_prompts=2, warp=STILL)
    drawn = episodes_of("painted", batch=64, n_prompts=2, warp=STILL, drafts=1.0, wrong=0.1)
    assert torch.equal(drawn.images[:, 2], drawn.images[:, 0])
    assert torch.equal(drawn.images[:, :2], plain.images[:, :2])
    same = (drawn.classes[:, 2] == drawn.classes[:, 0]).float().mean((1, 2))
    assert 0.7 < same.mean() < 1.0
    assert (same < 1).float().mean() > 0.8


def test_drafts_are_as_frequent_as_asked_and_never_the_only_prompt():
    def share(found: Episodes) -> float:
        return (found.images[:, -1] == found.images[:, 0]).flatten(1).all(1).float().mean().item()

    assert share(episodes_of("painted", batch=200, drafts=0.3)) == pytest.approx(0.3, abs=0.1)
    assert share(episodes_of("painted", batch=100, n_prompts=1, drafts=1.0)) < 0.1
    assert share(episodes_of("painted", batch=100)) < 0.1


def test_small_structures_are_magnified():
    zoom = dataclasses.replace(STILL, zoom=6.0, zoomed=1.0)
    small = np.zeros((2, 32, 32))
    small[:, 14:18, 14:18] = 1
    bank = hand_made_bank(np.full((2, 32, 32), 99.0), small, [0, 0], [0, 0], [0, 0])
    for warp, expected in ((STILL, (15, 17)), (zoom, (20, 32 * 32 * 0.3))):
        found = sampler(bank, families={"real": 1.0}, warp=warp).sample(50, 1)
        area = (found.classes[:, 1] > 0).flatten(1).sum(1).float()
        assert expected[0] <= area.median() <= expected[1]
