"""`cir weights`: what ships with the package.

Modules are imported when the command runs: JAX takes seconds to load.
"""

import argparse

from cir_jax.errors import unknown

QUALITIES = (10, 20, 30, 40)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="print the card of these, whole"
    )


def run(options: argparse.Namespace) -> int:
    """Prints a table of the shipped weights, or the card of one.

    Raises:
        UserError: there are none of that name, or a file's checksum is wrong.
    """
    from cir_jax.weights import shipping

    if options.name is not None:
        path = shipping.find_shipped(options.name)
        if path is None:
            raise unknown("shipped weights", options.name, shipping.shipped())
        print(shipping.card(path).read_text(encoding="utf-8"), end="")
        return 0
    print(_table())
    print(
        "\ndB: gain over JPEG of these qualities, RGB; how it was measured, and the "
        "terms of use: cir weights NAME"
    )
    return 0


def _table() -> str:
    from cir_jax import files, tables, weights
    from cir_jax.weights import shipping

    default = shipping.find_shipped(shipping.DEFAULT)
    rows = [
        ["name", "model", "parameters", "MB", *(f"dB {q}" for q in QUALITIES), "sha256"]
    ]
    for name, path in shipping.shipped().items():
        metadata, tensors = weights.read(path)
        gains = shipping.gains(path)
        rows.append(
            [
                f"{name} (default)" if path == default else name,
                weights.title_of(metadata),
                f"{sum(tensor.size for tensor in tensors.values()):,}",
                f"{path.stat().st_size / 1e6:.1f}",
                *(gains.get(quality, "") for quality in QUALITIES),
                files.sha256(path),
            ]
        )
    return tables.markdown(rows)
