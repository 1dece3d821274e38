"""Tasks of all-in-one training: to which of them a degraded version belongs.

A task is named by what its versions are called: by label and quality, "jpeg 10", or by
label alone, "jpeg", "noise" or "haze". Where both are there the more exact one counts.
"""

from collections.abc import Iterable, Sequence

from cir_jax.errors import UserError


def task_number(tasks: Sequence[str], label: str, quality: int) -> int:
    """The number of the task that versions of a label and quality belong to.

    Raises:
        UserError: they belong to none.
    """
    exact = f"{label} {quality}"
    for name in (exact, label):
        if name in tasks:
            return tasks.index(name)
    raise UserError(
        f"the data has versions {exact}, which belong to no task of "
        f"config.data.tasks={tuple(tasks)}: name them there, as {exact!r} or "
        f"{label!r}, or train on data without them"
    )


def check_tasks(tasks: Sequence[str], kinds: Iterable[tuple[str, int]]) -> None:
    """Checks, before training, that tasks and data belong together.

    Args:
        tasks: their names; none at all fit any data.
        kinds: the label and quality of all versions, see `recipes.kinds`.

    Raises:
        UserError: a task is named twice or has no version, or a version has no task.
    """
    if not tasks:
        return
    for name in tasks:
        if tasks.count(name) > 1:
            raise UserError(f"config.data.tasks names {name!r} twice: name it once")
    kinds = sorted(kinds)
    found = {task_number(tasks, *kind) for kind in kinds}
    missing = [name for n, name in enumerate(tasks) if n not in found]
    if missing:
        there = ", ".join(f"{label} {quality}" for label, quality in kinds)
        raise UserError(
            f"config.data.tasks names {', '.join(missing)}, of which the data has no "
            f"version (it has {there}): name those alone that there are"
        )
