import numpy as np
import pytest
from anneal import Config, Plate, config, kernels


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in vars(Config(ny=24, nx=31)).items():
        monkeypatch.setattr(config, name, value)


def spots(n, seed=1):
    sides = np.array([config.nx, config.ny]) * config.spacing
    return np.random.default_rng(seed).random((n, 2)) * sides


def test_a_pulse_leaves_its_energy():
    middle = np.array([[config.nx, config.ny]]) * config.spacing / 2
    heat = np.zeros((config.ny, config.nx))
    kernels.deposit(middle, config.pulse, 3e-4, config.spacing, heat)
    assert heat.sum() * config.spacing**2 == pytest.approx(config.pulse, rel=1e-3)


def test_pulses_add_up():
    both, first, second = np.zeros((3, config.ny, config.nx))
    where = spots(2)
    for heat, some in [(both, where), (first, where[:1]), (second, where[1:])]:
        kernels.deposit(some, config.pulse, config.width, config.spacing, heat)
    np.testing.assert_allclose(both, first + second)


def test_heat_flows_down_the_slope():
    T = np.tile(np.arange(31.0), (24, 1))
    k, qx, qy = np.ones((24, 31)), np.zeros((24, 32)), np.zeros((25, 31))
    kernels.fluxes(T, k, 1.0, qx, qy)
    np.testing.assert_array_equal(qx[:, 1:-1], -1)
    np.testing.assert_array_equal(qx[:, [0, -1]], 0)
    np.testing.assert_array_equal(qy, 0)


def test_no_heat_is_lost():
    plate = Plate()
    plate.shoot(spots(20))
    before = plate.T.sum()
    plate.run(100)
    assert plate.T.sum() == pytest.approx(before, rel=1e-12)
    assert np.ptp(plate.T) > 1


def test_the_plate_evens_out():
    plate = Plate()
    plate.shoot(spots(20))
    plate.run(200, every=20)
    hottest = [hot for _, hot, _ in plate.history]
    assert len(hottest) == 11
    assert hottest == sorted(hottest, reverse=True)
    assert hottest[-1] < hottest[0]
    assert plate.time == pytest.approx(200 * plate.step)


def test_a_cold_plate_stays_as_it_is():
    plate = Plate()
    plate.run(30)
    np.testing.assert_array_equal(plate.T, config.ambient)


def test_the_configuration_is_heard():
    slow, fast = Plate(), Plate()
    for plate in (slow, fast):
        plate.T[3:9, 4:12] += 500
    slow.run(40)
    config.k = 1.5 * config.k  # and the step stays
    fast.run(40)
    assert fast.T.max() < slow.T.max()


def test_a_step_as_the_book_writes_it():
    plate = Plate()
    plate.shoot(spots(5))
    T, h = plate.T.copy(), config.spacing
    expected = T.copy()
    k = np.interp(T, config.k_at, config.k)
    for j in range(config.ny):
        for i in range(config.nx):
            for b, a in [(j - 1, i), (j + 1, i), (j, i - 1), (j, i + 1)]:
                if 0 <= b < config.ny and 0 <= a < config.nx:
                    flow = (k[b, a] + k[j, i]) / 2 * (T[b, a] - T[j, i]) / h
                    expected[j, i] += plate.step * flow / (h * config.capacity)
    plate.run(1)
    np.testing.assert_allclose(plate.T, expected, rtol=1e-13)
