"""A site with a key and a folder for its ledger."""

import pytest

from fed_diffmic.provision.keys import load_private, make_site_key


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    path = tmp_path_factory.mktemp("key") / "key"
    make_site_key(path)
    return load_private(path)


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir(mode=0o700)
    return folder
