import jax
import numpy as np
import pytest

from cir_jax import parallel
from cir_jax.errors import UserError


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "4"}, False),  # an interactive shell in an allocation
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "2"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ],
)
def test_clusters_are_told_by_the_environment(environment, several):
    assert parallel._several_processes(environment) == several


def test_half_of_a_clusters_settings_is_refused():
    with pytest.raises(UserError, match="--process go together: give all three"):
        parallel.join_cluster("auto", "localhost:1234", None, None)
    with pytest.raises(UserError, match="go together"):
        parallel.join_cluster("on", None, 2, None)


@pytest.mark.parametrize("fsdp", [0, 2, -2])
def test_a_mesh_that_does_not_divide_the_devices_is_refused(fsdp):
    with pytest.raises(UserError, match=r"does not divide the 1 devices: give a div"):
        parallel.make_mesh(fsdp)


def test_batches_are_sent_ahead_and_all_arrive():
    split = parallel.batch_sharding(parallel.make_mesh(1), 2)
    taken = []

    def batches():
        for i in range(5):
            taken.append(i)
            yield {"x": np.full((2, 3), i)}

    ready = parallel.on_devices(batches(), split)
    first = next(ready)
    assert isinstance(first["x"], jax.Array)
    assert taken == [0, 1, 2]  # two more than was asked for
    assert [int(batch["x"][0, 0]) for batch in ready] == [1, 2, 3, 4]
