"""Real processes over TLS train the same weights as the in-process simulation, bit for bit."""

from tests.consortium.harness import SITES, consortium, final_weights, summary


def test_weights_equal_the_simulation(tmp_path, data, common, undisturbed):
    with consortium(tmp_path, data, common) as made:
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
