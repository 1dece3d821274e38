"""Running a grain data set: in this process, or in worker processes."""

import signal

import grain
from absl import flags


def iterate(dataset: grain.MapDataset, workers: int, ahead: int) -> grain.IterDataset:
    """An iterable over a data set, the same elements whatever the arguments.

    Args:
        dataset: random access to the elements.
        workers: how many processes compute them; 0 for this one.
        ahead: how many elements this process computes ahead, in two threads; 0 for
            none, each when it is asked for.
    """
    threads = 0 if workers or not ahead else 2
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    iterable = dataset.to_iter_dataset(options)
    if not workers:
        return iterable
    # Grain reads absl flags in its workers' start-up, also where no absl app ran.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=workers)
    return iterable.mp_prefetch(options, worker_init_fn=_end_quietly)


def _end_quietly(worker: int, workers: int) -> None:
    """On Ctrl-C, which reaches every process, a worker just ends: no traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
