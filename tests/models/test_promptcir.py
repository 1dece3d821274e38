import jax
import numpy as np
from flax import nnx
from golden_weights import assert_close, load, recorded_outputs

from cir_jax.convert import from_state_dict


def test_tiny_network_equals_the_official_one_at_every_stage():
    goldens, weights = load("promptcir_tiny")
    taps = {
        name.removeprefix("tap:"): value
        for name, value in goldens.items()
        if name.startswith("tap:")
    }
    ours = {name: name.replace("residual_group.", "") for name in taps}
    graph, state = nnx.split(from_state_dict(weights))

    @jax.jit
    def run(state, image):
        model = nnx.merge(graph, state)
        with recorded_outputs(model, list(ours.values())) as outputs:
            return model(image), outputs

    restored, outputs = run(state, goldens["x"])
    for name, expected in taps.items():
        assert_close(np.reshape(outputs[ours[name]], expected.shape), expected)
    assert_close(restored, goldens["y"])


def test_full_network_equals_the_official_one():
    goldens, weights = load("promptcir_full")
    graph, state = nnx.split(from_state_dict(weights))
    restored = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, goldens["x"])
    assert_close(restored, goldens["y"])
