"""Training checkpoints: the one module that knows Orbax."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from cir_jax import parallel
from cir_jax.errors import UserError, first_line


def _score(metrics: Mapping[str, float]) -> float:
    return metrics["score"]


class Checkpoints:
    """Saves and restores a training's whole state, one folder per step.

    Saving is asynchronous and atomic: a folder appears under its own name when it is
    complete. The last `keep` are kept, and the best by the evaluation's score.
    """

    def __init__(self, folder: Path, keep: int, *, read_only: bool = False):
        latest = preservation_policy.LatestN(keep)
        best = preservation_policy.BestN(
            get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False
        )
        policy = preservation_policy.AnyPreservationPolicy([latest, best])
        self._folder = folder
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=_score,  # without one, metrics are not written to disk
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            ),
        )

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints there are."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, score: float | None) -> None:
        """Starts to save; the state may be donated as soon as this returns.

        Args:
            step: the steps done, which are the global batches consumed.
            state: a pytree of arrays.
            score: of the evaluation of this very state, if there was one.
        """
        if step in self.steps:
            return
        self._manager.save(
            step,
            args=ocp.args.StandardSave(state),
            metrics=None if score is None else {"score": score},
        )

    def restore(self, state: Any, tell: Callable[[str], Any] = print) -> Any:
        """The newest checkpoint's state, or of the one before where that is damaged.

        What is damaged is moved out of the way, beside the checkpoints' folder.

        Args:
            state: a state of the same structure; gives shapes, dtypes and shardings,
                which need not be those that were saved on.
            tell: takes a sentence about every checkpoint that is damaged.

        Raises:
            UserError: there is none that can be read: all are damaged, or of another
                model or optimizer.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps):
            try:
                restored = self._read(step, state)
            except Exception as error:  # of many kinds, by what is damaged
                damaged[step] = first_line(error)
                continue
            for bad, reason in damaged.items():
                aside = self._put_aside(bad)
                tell(
                    f"checkpoint {self._folder / str(bad)} is damaged ({reason}); it "
                    f"is {aside} now, and step {step} is gone on from"
                )
            return restored
        self.close()
        newest = self.steps[-1]
        raise UserError(
            f"checkpoint {self._folder / str(newest)} does not fit this config's model "
            f"and optimizer, or is damaged ({damaged[newest]}): give another "
            "--workdir, or the config it had"
        )

    def read(self, step: int | None, state: Any) -> tuple[int, Any]:
        """One checkpoint's step and state; nothing is changed.

        Args:
            step: which; the newest when None.
            state: see `restore`; shapes with shardings will do.

        Raises:
            UserError: there is none, or it is damaged.
        """
        steps = self.steps
        if not steps or step not in (None, *steps):
            found = ", ".join(map(str, steps)) or "none"
            raise UserError(
                f"{self._folder} has no checkpoint of step {step}; it has {found}"
            )
        step = steps[-1] if step is None else step
        try:
            return step, self._read(step, state)
        except Exception as error:
            raise UserError(
                f"checkpoint {self._folder / str(step)} is damaged "
                f"({first_line(error)}): take another, of "
                f"{', '.join(str(other) for other in steps if other != step)}"
            ) from error

    def _read(self, step: int, state: Any) -> Any:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def _put_aside(self, step: int) -> Path:
        """Moves a checkpoint away, so that its step can be saved again."""
        aside = self._folder.parent / f"damaged_checkpoint_{step}"
        if parallel.is_first():
            shutil.rmtree(aside, ignore_errors=True)
            (self._folder / str(step)).rename(aside)
        parallel.wait_for_all(f"checkpoint {step} put aside")
        self._manager.reload()
        return aside

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()
