"""Engines: who runs the shard writer over the shard numbers."""

import shlex
from collections.abc import Iterator

import grain

from cir_jax.data.workers import iterate
from cir_jax.errors import UserError
from data_pipelines.writer import ShardWriter

ENGINES = ("local", "beam")


def local(writer: ShardWriter, workers: int) -> Iterator[int]:
    """Writes the shards on this machine; yields the number of each when it is done.

    Args:
        writer: the shard writer.
        workers: how many grain worker processes; 0 writes in this process.
    """
    dataset = grain.MapDataset.range(writer.shards).map(writer)
    yield from iterate(dataset, workers, ahead=0)


def beam(writer: ShardWriter, options: str) -> None:
    """Writes the shards on an Apache Beam runner, and waits for it.

    Args:
        writer: the shard writer. Its folder and source must be the same paths on every
            worker: a shared or mounted file system.
        options: Beam's own flags, such as "--runner=DataflowRunner --project=mine".

    Raises:
        UserError: Beam is not installed, or the pipeline fails.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(
            "--engine beam needs Apache Beam: pip install 'cir_jax[beam]'"
        ) from error
    pipeline = apache_beam.Pipeline(options=PipelineOptions(shlex.split(options)))
    # Reshuffled, so that runners do not fuse all numbers into one worker's bundle.
    _ = (
        pipeline
        | "shard numbers" >> apache_beam.Create(range(writer.shards))
        | apache_beam.Reshuffle()
        | "write shard" >> apache_beam.Map(writer)
    )
    try:
        pipeline.run().wait_until_finish()
    except Exception as error:  # each runner has its own, with the worker's as text
        raise UserError(f"the Beam pipeline failed: {error}") from error
