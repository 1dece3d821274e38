import jax
import jax.numpy as jnp
import numpy as np
import pytest
from twins import arrays

from cir_jax import perception_losses as losses


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def slow_contrastive(anchors, positives, tasks):
    """Image by image, in plain numpy."""
    anchors, positives = np.asarray(anchors, np.float64), np.asarray(positives)
    values = []
    for i, task in enumerate(tasks):
        near = np.exp(anchors[i] @ positives[i] / 0.1)
        far = [
            np.exp(anchors[i] @ anchors[j] / 0.1)
            for j, other in enumerate(tasks)
            if other != task
        ]
        if far:
            values.append(-np.log(near / (near + sum(far))))
    return np.mean(values) if values else 0.0


@pytest.mark.parametrize("tasks", [(0, 1, 2, 1, 0), (0, 0, 0, 0, 1), (2, 2, 2, 2, 2)])
def test_contrast_with_other_tasks(tasks):
    anchors, positives = map(unit, arrays((5, 8), (5, 8)))
    tasks = jnp.array(tasks)
    ours = losses.contrastive(anchors, positives, tasks)
    assert float(ours) == pytest.approx(slow_contrastive(anchors, positives, tasks))
    gradients = jax.grad(losses.contrastive, (0, 1))(anchors, positives, tasks)
    assert all(np.isfinite(g).all() for g in gradients)
    assert all(np.any(g) == (len(set(tasks.tolist())) > 1) for g in gradients)


def test_other_tasks_are_pushed_away_from_but_not_pushed():
    """With two images the gradient of one holds nothing of being the other's far."""
    anchors, positives = map(unit, arrays((2, 8), (2, 8)))
    tasks = jnp.array([0, 1])

    def first_image_alone(first):
        held = jax.lax.stop_gradient(anchors)
        logits = jnp.stack([first @ positives[0], first @ held[1]]) / 0.1
        return (jax.nn.logsumexp(logits) - logits[0]) / 2

    ours = jax.grad(losses.contrastive)(anchors, positives, tasks)[0]
    np.testing.assert_allclose(
        ours, jax.grad(first_image_alone)(anchors[0]), rtol=1e-4, atol=1e-6
    )


def test_quality_is_the_softmax_of_bare_cosines():
    cosines = np.float32([[0.1, 0.3, 0.2], [-0.2, 0.0, 0.4]])
    expected = np.mean(1 - np.exp(cosines)[:, 2] / np.exp(cosines).sum(axis=1))
    assert float(losses.clip_quality(jnp.asarray(cosines))) == pytest.approx(expected)


def test_proxies_weigh_by_whether_they_do_better():
    psnr, reference = jnp.array([30.0, 31.0, 32.0, 29.0]), jnp.full(4, 31.0)
    applies = jnp.array([True, True, True, False])
    weights = losses.proxy_weights(psnr, reference, applies)
    np.testing.assert_array_equal(weights, [1.25, 1.25, 0.75, 0])


@pytest.mark.parametrize("proxies", [0, 2])
def test_difficulty_is_near_over_far_layer_by_layer(proxies):
    shapes = [(2, 8, 8, 3), (2, 4, 4, 5), (2, 2, 2, 4), (2, 2, 2, 4)]
    ours, clean, degraded, *others = (
        arrays(*shapes, seed=seed) for seed in range(3 + proxies)
    )
    weights = arrays(*[(2,)] * proxies, seed=9) if proxies else []
    weights = [jnp.abs(w) for w in weights]
    expected = 0.0
    for layer, factor in enumerate((1 / 12, 1 / 6, 1 / 3, 1)):
        for image in range(2):

            def d(maps, layer=layer, image=image):
                return np.mean(np.abs(ours[layer][image] - maps[layer][image]))

            far = 2 * d(degraded)
            far += sum(w[image] * d(o) for w, o in zip(weights, others, strict=True))
            expected += factor * d(clean) / max(1e-6, far) / 2
    value = losses.difficulty(ours, clean, degraded, others, weights)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


def test_difficulty_of_equal_images_is_finite():
    maps = arrays(*[(1, 4, 4, 2)] * 4)

    def value(maps):
        return losses.difficulty(maps, maps, maps, [], [])

    assert float(value(maps)) == 0
    assert all(np.isfinite(g).all() for g in jax.grad(value)(maps))
