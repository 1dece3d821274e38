"""Training checkpoints: the one module that knows Orbax."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from cir_jax.errors import UserError


def _psnr(metrics: Mapping[str, float]) -> float:
    return metrics["psnr"]


class Checkpoints:
    """Saves and restores a training's whole state, one folder per step.

    Saving is asynchronous and atomic: a folder appears under its own name when it is
    complete. The last `keep` are kept, and the best by the evaluation's PSNR.
    """

    def __init__(self, folder: Path, keep: int):
        latest = preservation_policy.LatestN(keep)
        best = preservation_policy.BestN(
            get_metric_fn=_psnr, n=1, keep_checkpoints_without_metrics=False
        )
        policy = preservation_policy.AnyPreservationPolicy([latest, best])
        self._folder = folder
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=_psnr,  # without one, metrics are not written to disk
                cleanup_tmp_directories=True,
            ),
        )

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints there are."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, psnr: float | None) -> None:
        """Starts to save; the state may be donated as soon as this returns.

        Args:
            step: the steps done, which are the global batches consumed.
            state: a pytree of arrays.
            psnr: the evaluation of this very state in dB, if there was one.
        """
        if step in self.steps:
            return
        self._manager.save(
            step,
            args=ocp.args.StandardSave(state),
            metrics=None if psnr is None else {"psnr": psnr},
        )

    def restore(self, state: Any) -> Any | None:
        """The newest checkpoint's state, or None where there is no checkpoint.

        Args:
            state: a state of the same structure; gives shapes, dtypes and shardings,
                which need not be those that were saved on.

        Raises:
            UserError: the checkpoint is of another model or optimizer.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except (ValueError, KeyError, TypeError) as error:
            self.close()
            raise UserError(
                f"checkpoint {self._folder / str(step)} does not fit this config's "
                "model and optimizer: give another --workdir, or the config it had"
            ) from error

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()
