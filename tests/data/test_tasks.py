"""Batches that say which task they are of, and that have a second patch."""

import itertools

import numpy as np
import pytest
from batches import assert_same, joined, taken

from cir_jax import symmetries
from cir_jax.codecs import get_codec
from cir_jax.data import manifest, pairs, recipes
from cir_jax.data.recipes import Recipe
from cir_jax.data.records import Record, Version, encode_lossless
from cir_jax.data.tasks import check_tasks, task_number
from cir_jax.errors import UserError
from cir_jax.resize import downscale

TASKS = ("noise", "jpeg", "jpeg 10", "haze")
NOISY = Recipe(("noise 25,50", "jpeg 10,20"))


@pytest.fixture(scope="module")
def source(photographs):
    """Eight records of 64x64 crops, each of four flat versions with their number."""
    kinds = (("noise", 25), ("jpeg", 20), ("jpeg", 10), ("haze", 0))
    records = []
    for x in range(0, 240, 30):
        clean = np.ascontiguousarray(photographs["coffee"][50:114, x : x + 64])
        versions = tuple(
            Version(label, quality, 0, encode_lossless(np.full_like(clean, number)))
            for number, (label, quality) in enumerate(kinds)
        )
        record = Record(encode_lossless(clean), "coffee", (50, x), 1, versions)
        records.append(record.to_bytes())
    return records


def read(source, count, **changes):
    options = {
        "seed": 3, "start": 0, "batch_size": 4, "patch": 32, "grid_phase": "random",
    }  # fmt: skip
    return taken(pairs.batches(source, **options | changes), count)


def all_of(batches, name):
    return np.concatenate([batch[name] for batch in batches])


@pytest.mark.parametrize(
    ("label", "quality", "number"),
    [("jpeg", 10, 2), ("jpeg", 40, 1), ("noise", 10, 0), ("haze", 0, 3)],
)
def test_the_more_exact_name_counts(label, quality, number):
    assert task_number(TASKS, label, quality) == number
    swapped = TASKS[::-1]
    assert swapped[task_number(swapped, label, quality)] == TASKS[number]


def test_batches_say_the_task_of_the_version_that_was_taken(source):
    batches = read(source, 12, tasks=TASKS)
    tasks = all_of(batches, "task")
    assert tasks.dtype == np.int32 and tasks.shape == (48,)
    assert set(tasks.tolist()) == {0, 1, 2, 3}
    np.testing.assert_array_equal(all_of(batches, "degraded")[:, 0, 0, 0], tasks)


def test_batches_say_the_task_of_an_online_degradation(source):
    batches = read(source, 12, recipe=NOISY, tasks=("noise", "jpeg 10", "jpeg 20"))
    tasks = all_of(batches, "task")
    errors = all_of(batches, "degraded") - all_of(batches, "clean").astype(float)
    # Neighbours differ by as much as the noise does, and hardly after JPEG.
    rough = np.abs(np.diff(errors, axis=2)).mean((1, 2, 3))
    assert set(tasks.tolist()) == {0, 1, 2}
    assert rough[tasks == 0].min() > rough[tasks > 0].max()


@pytest.mark.parametrize("recipe", [None, NOISY], ids=["versions", "online"])
@pytest.mark.parametrize("grid_phase", pairs.GRID_PHASES)
def test_what_is_new_changes_nothing_of_what_was_there(source, recipe, grid_phase):
    options = {"recipe": recipe, "grid_phase": grid_phase}
    before = read(source, 4, **options)
    after = read(source, 4, second=True, tasks=TASKS, **options)
    assert set(after[0]) == {"degraded", "clean", "task", "second"}
    for a, b in zip(before, after, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def places(image, step):
    """Every patch of 16 pixels in every turn, and where it is."""
    return {
        symmetries.turned(image[y : y + 16, x : x + 16], turn).tobytes(): (y, x, turn)
        for y, x, turn in itertools.product(
            range(0, 49, step), range(0, 49, step), range(8)
        )
    }


@pytest.mark.parametrize(("grid_phase", "step"), [("aligned", 8), ("random", 1)])
@pytest.mark.parametrize("scale", [1, 2])
def test_the_second_patch_is_of_the_same_degraded_image(
    photographs, grid_phase, step, scale
):
    clean = np.ascontiguousarray(photographs["autumn"][: 64 * scale, : 64 * scale])
    record = Record(encode_lossless(clean), "", (0, 0), scale, ()).to_bytes()
    coder = get_codec("jpeg")
    whole = coder.decode(coder.encode(downscale(clean, scale), 60))
    known = places(whole, step)
    options = {"patch": 16, "grid_phase": grid_phase, "recipe": Recipe(("jpeg 60",))}
    batches = read([record], 8, second=True, **options)
    found = [
        [known[patch.tobytes()] for patch in all_of(batches, name)]
        for name in ("degraded", "second")
    ]
    same = [a == b for a, b in zip(*found, strict=True)]
    assert sum(same) < 4  # of 32
    assert len({turn for _, _, turn in found[1]}) == 8


def test_the_second_patch_has_the_same_noise(photographs):
    """Where the two patches overlap their pixels are the same."""
    flat = np.full((24, 24, 3), 128, np.uint8)
    record = Record(encode_lossless(flat), "", (0, 0), 1, ()).to_bytes()
    options = {"patch": 24, "recipe": Recipe(("noise 50",))}
    for batch in read([record], 3, second=True, **options):
        for degraded, second in zip(batch["degraded"], batch["second"], strict=True):
            turns = [symmetries.turned(degraded, turn) for turn in range(8)]
            assert any((second == turned).all() for turned in turns)


def test_tasks_and_second_patches_are_a_function_of_seed_and_number(source):
    options = {"tasks": TASKS, "second": True}
    straight = read(source, 8, **options)
    assert_same(read(source, 3, start=5, **options), straight[5:])
    shares = [read(source, 8, process=p, processes=2, **options) for p in (0, 1)]
    assert_same(joined(*shares), straight)


def test_a_version_of_no_task_is_named(source):
    with pytest.raises(UserError, match=r"versions haze 0, .* of config.data.tasks=\("):
        read(source, 8, tasks=("noise", "jpeg"))


def test_the_check_meets_what_training_would_meet(records):
    _, contents = manifest.open_records(records, "")
    assert recipes.kinds(None, contents) == {("jpeg", 10)}
    assert recipes.kinds(None, contents, (20,)) == set()
    online = {("noise", 25), ("noise", 50), ("jpeg", 10), ("jpeg", 20)}
    assert recipes.kinds(NOISY, contents) == online
    check_tasks(("jpeg",), recipes.kinds(None, contents))
    check_tasks(("noise", "jpeg 10", "jpeg"), recipes.kinds(NOISY, contents))
    check_tasks((), recipes.kinds(NOISY, contents))


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        (("jpeg",), "versions noise 25, which belong to no task .*'noise 25' or 'noi"),
        (("jpeg 10", "noise"), "versions jpeg 20, which belong to no task"),
        (("jpeg", "noise", "rain"), "names rain, of which the data has no version"),
        (("jpeg", "jpeg 10", "jpeg 20", "noise"), r"names jpeg, .*has jpeg 10, jpeg 2"),
        (("jpeg", "noise", "jpeg"), "names 'jpeg' twice"),
    ],
)
def test_tasks_that_do_not_fit_the_data_are_refused(tasks, words):
    with pytest.raises(UserError, match=words):
        check_tasks(tasks, [("jpeg", 10), ("jpeg", 20), ("noise", 25)])
