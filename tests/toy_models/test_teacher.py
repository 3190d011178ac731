import numpy as np
import pytest

from toy_models import mlp
from toy_models.teacher import teacher_task


def test_the_teacher_solves_its_own_task():
    task = teacher_task((4, 16, 2), seed=0, train=64, validation=32)
    for samples in (task.train, task.validation):
        np.testing.assert_allclose(mlp.forward(task.teacher, samples.inputs), samples.targets, atol=1e-5)


def test_targets_are_standardised_so_that_answering_nothing_costs_one():
    targets = teacher_task((4, 16, 2), seed=1, train=64, validation=32, exponent=1.0).train.targets
    np.testing.assert_allclose(targets.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(targets.std(axis=0), 1, atol=1e-5)


def test_noise_is_what_the_teacher_cannot_answer():
    task = teacher_task((4, 16, 2), seed=0, train=64, validation=32, noise=0.5)
    loss = mlp.mse_loss(*task.train)(task.teacher)
    assert float(loss) == pytest.approx(0.25, rel=0.3)  # 128 draws: 12 % each way


def test_the_exponent_makes_the_later_features_lighter():
    flat, steep = (
        teacher_task((4, 16, 2), seed=0, train=64, validation=32, exponent=p).teacher["layers"][-1]["weight"][0]
        for p in (0.0, 1.0)
    )
    ratio = np.asarray(steep / flat)
    np.testing.assert_allclose(ratio / ratio[0], 1 / np.arange(1, 17), rtol=1e-5)


def test_equal_seeds_give_equal_tasks_and_validation_is_other_data():
    one, two, other = (teacher_task((4, 16, 2), seed=s, train=64, validation=32) for s in (0, 0, 1))
    np.testing.assert_array_equal(one.train.targets, two.train.targets)
    assert np.abs(one.train.inputs - other.train.inputs).max() > 0.1
    assert np.abs(one.train.inputs[:32] - one.validation.inputs).max() > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": 1}, "train is 1 and validation is 4"),
        ({"exponent": -1.0}, r"exponent is -1.0"),
        ({"noise": -1.0}, r"noise is -1.0"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        teacher_task((4, 8, 1), **({"seed": 0, "train": 4, "validation": 4} | change))
