"""Words to CLIP's token numbers, by the package tokenizers."""

import os
from collections.abc import Sequence
from pathlib import Path

from cir_jax.errors import UserError, first_line


def words(tokenizer_file: str | os.PathLike, texts: Sequence[str]) -> list[list[int]]:
    """Token numbers of each text; neither start nor end are among them.

    Args:
        tokenizer_file: Hugging Face's `tokenizer.json`, from beside the weights.
        texts: of any words.

    Raises:
        UserError: the package is not installed; or there is no such file, or it is no
            tokenizer's.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError(
            "words become tokens by the package tokenizers, which is not installed: "
            "pip install 'cir_jax[perceive]'"
        ) from error
    path = Path(tokenizer_file)
    if not path.is_file():
        raise UserError(
            f"{path}: there is no such file; download tokenizer.json of "
            "openai/clip-vit-base-patch32 from Hugging Face"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing more special
        raise UserError(f"{path} is no tokenizer.json ({first_line(error)})") from error
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
