"""Engines: who runs the shard writer over the shard numbers."""

import shlex
import sys
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
    try:
        yield from iterate(dataset, workers, ahead=0)
    except RuntimeError as error:  # grain's, when a process of its own ends
        raise UserError(
            f"a writing process ended early ({str(error).splitlines()[0]}): run the "
            "same command again, with fewer --workers if memory was short; the "
            "finished shards are kept"
        ) from error


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
    try:
        flags = PipelineOptions(shlex.split(options))
        known = flags.get_all_options()
        given = flags.get_all_options(retain_unknown_options=True)
        for name in sorted(given.keys() - known.keys()):
            print(f"--beam-options: --{name} is no flag of Beam's own", file=sys.stderr)
        pipeline = apache_beam.Pipeline(options=flags)
        # Reshuffled, so that runners do not fuse all numbers into one worker's bundle.
        _ = (
            pipeline
            | "shard numbers" >> apache_beam.Create(range(writer.shards))
            | apache_beam.Reshuffle()
            | "write shard" >> apache_beam.Map(writer)
        )
        pipeline.run().wait_until_finish()
    except SystemExit as error:  # argparse's, which has printed what is wrong
        raise UserError(f"Beam does not take --beam-options={options!r}") from error
    except Exception as error:  # each runner has its own, with the worker's as text
        raise UserError(f"the Beam pipeline failed: {error}") from error
