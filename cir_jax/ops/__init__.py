"""Pure functions of arrays, NHWC, that the models are built from."""
