"""The data, the training, and the weights of a run that nothing disturbed."""

import pytest

from tests.consortium.settings import final_weights, simulate, training, weights_of_rounds, write_data


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("consortium-data")
    write_data(folder)
    return folder


@pytest.fixture(scope="session")
def common():
    return training()


@pytest.fixture(scope="session")
def simulated(tmp_path_factory, data, common):
    """The folder of the simulation's run."""
    return simulate(tmp_path_factory.mktemp("simulation"), data, common)


@pytest.fixture(scope="session")
def undisturbed(simulated):
    return final_weights(simulated)


@pytest.fixture(scope="session")
def long_run():
    """A stage of more rounds than the fault matrix needs; the learning rate is the same in all of them."""
    return training(rounds=100, schedule="constant")


@pytest.fixture(scope="session")
def undisturbed_rounds(tmp_path_factory, data, long_run):
    """Weights' digests after so many rounds; each number of rounds is simulated once."""
    known = {}

    def of(rounds):
        if rounds not in known:
            known[rounds] = weights_of_rounds(tmp_path_factory.mktemp("rounds"), data, long_run, rounds)
        return known[rounds]

    return of
