"""What tests of pushes share: a Hub on the loopback where one user may write."""

import pytest
from support.hub_server import HubServer


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with HubServer(tmp_path_factory.mktemp("hub")) as hub:
        hub.add_user("ada")
        hub.add_token("hf_write", "ada")
        yield hub
