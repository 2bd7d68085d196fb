"""Real processes over TLS train the same weights as the in-process simulation, bit for bit.

One of the sites is in a network whose proxy is the only way out, and alone knows the coordinator's name.
"""

from typing import ClassVar

from tests.consortium.harness import OUTSIDE, SITES, consortium, final_weights, summary
from tests.proxy import Proxy, serving


def test_weights_equal_the_simulation(tmp_path, data, common, undisturbed):
    class HospitalProxy(Proxy):
        asked: ClassVar[list[str]] = []

    with serving(HospitalProxy) as proxy, consortium(tmp_path, data, common) as made:
        outside = f"{OUTSIDE}:{made.port}"
        HospitalProxy.routes = {outside: f"127.0.0.1:{made.port}"}
        made.set_way(SITES[-1], address=outside, proxy=f"http://{proxy}")
        server = made.start_server()
        for site in SITES:
            made.start_site(site)
        made.wait_event("site_found", site=SITES[0])
        for program in made.programs:
            program.look()
        assert server.wait(200) == 0, server.said()
        assert made.stop_sites() == [143, 143, 143]
    assert final_weights(made.run_dir) == undisturbed
    assert set(undisturbed) == {"guidance.safetensors", "diffusion.safetensors"}
    found = summary(made.run_dir)
    assert found["status"] == "done" and all(row["missing"] == {} for row in found["rounds"])
    assert HospitalProxy.asked and set(HospitalProxy.asked) == {outside}
