"""Trading resolution for channels and back, in PyTorch's channel order."""

from jaxtyping import Array, Float


def pixel_unshuffle(
    x: Float[Array, "b h w c"], factor: int = 2
) -> Float[Array, "b h//{factor} w//{factor} c*{factor}**2"]:
    """Folds each `factor` x `factor` cell of pixels into channels.

    The channel is the slow index and the cell's row and column the fast ones, as in
    `torch.nn.PixelUnshuffle`; ported weights rely on that order.

    Args:
        x: a map whose height and width are multiples of `factor`.
        factor: side of a cell, in pixels.

    Returns:
        The map at 1 / `factor` of the resolution with `factor`^2 times the channels.
    """
    b, h, w, c = x.shape
    r = factor
    x = x.reshape(b, h // r, r, w // r, r, c)
    x = x.transpose(0, 1, 3, 5, 2, 4)  # b h/r w/r c r r
    return x.reshape(b, h // r, w // r, c * r * r)


def pixel_shuffle(
    x: Float[Array, "b h w c"], factor: int = 2
) -> Float[Array, "b h*{factor} w*{factor} c//{factor}**2"]:
    """Unfolds channels into `factor` x `factor` cells: undoes `pixel_unshuffle`.

    Args:
        x: a map whose number of channels is a multiple of `factor`^2.
        factor: side of a cell, in pixels.

    Returns:
        The map at `factor` times the resolution with 1 / `factor`^2 of the channels.
    """
    b, h, w, c = x.shape
    r = factor
    x = x.reshape(b, h, w, c // (r * r), r, r)
    x = x.transpose(0, 1, 4, 2, 5, 3)  # b h r w r c/r²
    return x.reshape(b, h * r, w * r, c // (r * r))
