"""The training command.

    python -m cir_jax.main --config=configs/X.py [--workdir=DIR] [--config.a.b=value]

Like cli.py an entry point, and with it the only place that may import data_pipelines.
"""

from cir_jax.huge_pages import restart_with_huge_pages

if __name__ == "__main__":
    restart_with_huge_pages()  # before what takes time to import

import os
import shlex
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from cir_jax import cli, experiment
from cir_jax.data import manifest
from cir_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment's config file, such as configs/quickstart.py."
)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where the run lives; runs/NAME of configs/NAME.py by default, runs/NAME_FORM of "
    "configs/NAME.py:FORM.",
)
PROFILE = flags.DEFINE_bool(
    "profile", False, "Write a profiler's trace of a few steps to WORKDIR/profile."
)
CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Where compiled programs are kept; WORKDIR/compiled by default, but on CPUs, whose "
    "programs do for one machine alone.",
)
DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "auto",
    ["auto", "on", "off"],
    "Whether this is one process of a cluster's; auto asks Slurm, Open MPI and GKE.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where nothing else tells it."
)
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
PROCESS = flags.DEFINE_integer("process", None, "The number of this process, from 0.")


def _parse(arguments: list[str]) -> list[str]:
    """Parses flags; says in one sentence what is wrong with them."""
    try:
        rest = flags.FLAGS(arguments)
    except Exception as error:  # a config is a program and can raise anything
        # The flag's own errors quote text within text, and a config that raises one
        # comes with its traceback: the last line is what says it.
        text = str(error)
        if text.startswith("'"):
            text = text.strip("'").replace("\\n", "\n")
        lines = text.splitlines()
        reason = lines[-1]
        if " " not in reason:  # the bare name, quoted
            reason = "no field " + reason.strip('"')
        raise UserError(f"{' '.join(arguments[1:])}: {reason}") from error
    if CONFIG.value is None:
        raise UserError("no config: give --config=configs/quickstart.py, or another")
    file, _ = _file_and_form()
    if not file.is_file():
        raise UserError(
            f"config file {file} does not exist: give --config=configs/quickstart.py, "
            "or another"
        )
    if rest[1:]:
        raise UserError(f"unknown argument {rest[1]!r}: flags start with --")
    return rest


def _file_and_form() -> tuple[Path, str]:
    text = config_flags.get_config_filename(flags.FLAGS["config"])
    return experiment.file_and_form(text)


def _run(_: list[str]) -> None:
    # Imported late: JAX takes seconds to load, a mistyped flag should not.
    import jax

    from cir_jax import parallel
    from cir_jax.models import abstract_model

    file, form = _file_and_form()
    workdir = Path(WORKDIR.value or f"runs/{'_'.join(filter(None, (file.stem, form)))}")
    config = CONFIG.value
    experiment.check(config)
    parallel.join_cluster(
        DISTRIBUTED.value, COORDINATOR.value, PROCESSES.value, PROCESS.value
    )
    if not experiment.trains_prompts(config):
        abstract_model(config.model)  # refuses a wrong one before any work is done
    if CACHE.value or (jax.default_backend() != "cpu" and not _cache_is_set()):
        cache = CACHE.value or str(workdir / "compiled")
        jax.config.update("jax_compilation_cache_dir", cache)
    folder = experiment.records_folder(config, workdir)
    missing = not (folder / manifest.NAME).is_file()
    if config.data.encode_if_missing and missing and parallel.is_first():
        cli.run(shlex.split(experiment.encode_command(config, workdir))[1:])
    parallel.wait_for_all("records")
    if experiment.trains_prompts(config):
        from cir_jax.perceiver import train_and_evaluate
    else:
        from cir_jax.train import train_and_evaluate
    train_and_evaluate(config, workdir, profile=PROFILE.value)


def _cache_is_set() -> bool:
    return "JAX_COMPILATION_CACHE_DIR" in os.environ


def main() -> None:
    """Runs the command; bad input exits with 2 and one sentence."""
    logging.set_verbosity(logging.ERROR)  # Orbax warns of checkpoints not evaluated
    try:
        app.run(_run, flags_parser=_parse)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(cli.WRONG_USE)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(cli.INTERRUPTED)


if __name__ == "__main__":
    main()
