import numpy as np
import pytest

from uniwetok_hf.evaluation.probe import linear_probe_outcomes


def blobs(seed, count=60):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    centres = np.array([[5.0, 0.0], [-5.0, 0.0], [0.0, 5.0]])
    return centres[labels] + rng.normal(size=(count, 2)), [f"class {label}" for label in labels]


def test_what_is_separable_is_found_whatever_its_scale():
    features, labels = blobs(0)
    test_features, test_labels = blobs(1)
    assert linear_probe_outcomes(features, labels, test_features, test_labels).all()
    scale, shift = np.array([1e-4, 1e4]), np.array([7.0, -1e5])
    rescaled = linear_probe_outcomes(features * scale + shift, labels, test_features * scale + shift, test_labels)
    assert rescaled.all()


def test_noise_is_not_found():
    rng = np.random.default_rng(0)
    labels = [str(i % 2) for i in range(400)]
    outcomes = linear_probe_outcomes(rng.normal(size=(400, 3)), labels, rng.normal(size=(400, 3)), labels)
    assert 0.4 < outcomes.mean() < 0.6


def test_it_is_the_minimum():
    # One feature, two classes: the gradient of the penalised loss must vanish at the solution.
    import torch

    from uniwetok_hf.evaluation.probe import _fit

    rows = torch.tensor([[-1.0], [-0.5], [0.5], [1.5]], dtype=torch.float64)
    targets = torch.tensor([0, 1, 0, 1])
    weight, bias = (value.requires_grad_() for value in _fit(rows, targets, 2, l2=0.1, max_steps=200))
    loss = torch.nn.functional.cross_entropy(rows @ weight + bias, targets) + 0.05 * (weight**2).sum()
    loss.backward()
    assert weight.grad.abs().max() < 1e-4 and bias.grad.abs().max() < 1e-4
    assert weight.abs().max() > 0.1


def test_unseen_labels_are_wrong_and_constant_channels_do_no_harm():
    features, labels = blobs(0)
    features = np.concatenate([features, np.ones((60, 1))], axis=1)
    outcomes = linear_probe_outcomes(features, labels, features[:3], [labels[0], "never seen", labels[2]])
    assert outcomes.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 3)), ["a"], np.zeros((1, 3)), ["a"]), "`features` must be"),
        ((np.zeros((2, 3)), ["a", "b"], np.zeros((0, 3)), []), "`test_features` must be"),
        ((np.zeros((2, 3)), ["a", "b"], np.zeros((1, 2)), ["a"]), "2 channels, `features` 3"),
        ((np.zeros((2, 3)), ["a", "a"], np.zeros((1, 3)), ["a"]), "2 or more different labels"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        linear_probe_outcomes(*arguments)
