"""The start of the `cir` command, which is `python -m cir_jax` too."""

from cir_jax.huge_pages import restart_with_huge_pages


def main() -> None:
    """The console command."""
    restart_with_huge_pages()
    # Imported late, so that what is started again has done nothing yet.
    from cir_jax import cli

    cli.main()


if __name__ == "__main__":
    main()
