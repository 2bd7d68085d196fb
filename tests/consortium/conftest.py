"""The data, the training, and the weights of a run that nothing disturbed."""

import pytest

from tests.consortium.harness import final_weights, simulate, training, write_data


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("consortium-data")
    write_data(folder)
    return folder


@pytest.fixture(scope="session")
def common():
    return training()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, data, common):
    return final_weights(simulate(tmp_path_factory.mktemp("simulation"), data, common))
