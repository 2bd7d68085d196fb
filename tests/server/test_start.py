from dataclasses import replace
from pathlib import Path

import pytest

from fed_diffmic.config.compose import compose_server
from fed_diffmic.config.server import ServerConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.errors import ConfigError, CredentialError, UsageError
from fed_diffmic.provision.authority import make_authority
from fed_diffmic.provision.keys import make_site_key
from fed_diffmic.provision.roster import Roster
from server import start
from server.supervisor import banner, listening


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("consortium")
    authority = make_authority(folder / "ca")
    certificate, key = authority.issue_server([], [], folder / "server")
    roster = Roster()
    for name in ("beta", "alpha"):
        roster = roster.enrol(name, make_site_key(folder / name), "Hospital")
    roster.save(folder / "roster.json")
    found = {"certificate": certificate, "key": key, "ca": authority.certificate_path, "roster": folder / "roster.json"}
    return {name: str(path) for name, path in found.items()}


def config_of(files: dict[str, str], folder: Path, *settings: str) -> ServerConfig:
    security = [f"security.{name}={path}" for name, path in files.items()]
    return compose_server(None, ["model=tiny", f"run.dir={folder}", *security, *settings])


def test_what_fits_is_started(files, tmp_path):
    config = config_of(files, tmp_path / "run")
    start.check_start(config, resume=False)
    assert start.expected_sites(config) == ["alpha", "beta"]
    assert not any("INSECURE" in line for line in banner(config))
    assert start.signing_key(config) is not None


@pytest.mark.parametrize("key", ["certificate", "key", "ca", "roster"])
def test_without_tls_or_a_roster_nothing_is_started(files, tmp_path, key):
    given = {name: path for name, path in files.items() if name != key}
    with pytest.raises(ConfigError, match=f"security.{key}"):
        start.check_start(config_of(given, tmp_path / "run"), resume=False)


def test_insecure_says_so_in_every_line(tmp_path):
    config = compose_server(None, [f"run.dir={tmp_path}", "security.insecure=true", "consortium.sites=[a]"])
    start.check_start(config, resume=False)
    assert all(line.startswith("INSECURE ") for line in banner(config))
    assert len(banner(config)) >= 3


def test_a_key_of_another_certificate_is_refused(files, tmp_path):
    _, other = make_authority(tmp_path / "ca").issue_server([], [], tmp_path / "server")
    with pytest.raises(ConfigError, match=r"security\.key"):
        start.check_start(config_of({**files, "key": str(other)}, tmp_path / "run"), resume=False)


def test_a_ca_that_did_not_issue_the_certificate_is_refused(files, tmp_path):
    other = make_authority(tmp_path / "ca")
    with pytest.raises(ConfigError, match=r"security\.ca.*the authority that issued"):
        start.check_start(config_of({**files, "ca": str(other.certificate_path)}, tmp_path / "run"), resume=False)
    both = tmp_path / "both.crt"  # while a CA is renewed
    both.write_bytes(other.certificate_path.read_bytes() + Path(files["ca"]).read_bytes())
    start.check_start(config_of({**files, "ca": str(both)}, tmp_path / "run"), resume=False)


def test_that_it_listens_is_not_said_before_it_is_true(files, tmp_path):
    config = config_of(files, tmp_path / "run")
    assert not any(line.startswith("listening on") for line in banner(config))
    assert listening(config) == ["listening on 127.0.0.1:9443"]


def test_a_certificate_that_is_over_is_refused(files, tmp_path, monkeypatch):
    from datetime import UTC, datetime

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2199, 1, 1, tzinfo=UTC)

    monkeypatch.setattr(start, "datetime", Later)
    with pytest.raises(ConfigError, match="valid now"):
        start.check_start(config_of(files, tmp_path / "run"), resume=False)


def test_a_certificate_that_does_not_name_loopback_is_refused(files, tmp_path, monkeypatch):
    monkeypatch.setattr(start, "LOCAL", (*start.LOCAL, "coordinator.example"))
    with pytest.raises(ConfigError, match=r"also names coordinator\.example"):
        start.check_start(config_of(files, tmp_path / "run"), resume=False)


def test_a_roster_that_cannot_be_read_is_refused(files, tmp_path):
    torn = tmp_path / "roster.json"
    torn.write_text("{")
    with pytest.raises(CredentialError, match="roster"):
        start.check_start(config_of({**files, "roster": str(torn)}, tmp_path / "run"), resume=False)


def test_sites_that_are_not_enrolled_are_named(files, tmp_path):
    with pytest.raises(ConfigError, match="gamma"):
        start.check_start(config_of(files, tmp_path / "run", "consortium.sites=[alpha,gamma]"), resume=False)
    Roster().save(tmp_path / "empty.json")
    with pytest.raises(ConfigError, match="a roster with a site"):
        start.check_start(config_of({**files, "roster": str(tmp_path / "empty.json")}, tmp_path / "run"), resume=False)


def test_a_run_is_not_overwritten_and_nothing_is_not_resumed(files, tmp_path):
    config = config_of(files, tmp_path / "run")
    with pytest.raises(UsageError, match="no run"):
        start.check_start(config, resume=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(ConfigError, match="folder without a run"):
        start.check_start(config, resume=False)
    start.check_start(config, resume=True)


def test_a_run_is_continued_with_its_own_settings(files, tmp_path):
    config = config_of(files, tmp_path / "run")
    start.check_same_run(config, replace(config, listen=replace(config.listen, port=1234)))
    with pytest.raises(ConfigError, match="seed"):
        start.check_same_run(config, replace(config, seed=7))
    elsewhere = replace(config, run=replace(config.run, dir=str(tmp_path / "moved" / "run")))
    start.check_same_run(config, elsewhere)
    with pytest.raises(UsageError, match="started in a folder named run, which is named other now") as caught:
        start.check_same_run(config, replace(config, run=replace(config.run, dir=str(tmp_path / "other"))))
    assert "Name the folder run again" in caught.value.remedy


def test_the_spec_is_the_one_of_a_simulation_with_the_same_groups(files, tmp_path):
    from fed_diffmic.config.compose import compose
    from fed_diffmic.config.spec import make_spec

    settings = ["consortium.classes=[no,yes]", "consortium.task=multiclass", "seed=3", "stages=tiny"]
    given = start.run_config(config_of(files, tmp_path / "run", *settings), ["alpha", "beta"])
    simulation = compose(None, ["model=tiny", "stages=tiny", "seed=3"])
    expected = make_spec(
        simulation, classes=["no", "yes"], task="multiclass", run_id="run", arm="federated", device="cpu"
    )
    assert replace(RunSpec.from_json(given["spec-json"]), modality=expected.modality) == expected
    assert given["sites"] == "alpha|beta"
    assert "spec-json" not in start.run_config(config_of(files, tmp_path / "run"), None)


def test_a_run_with_shared_noise_is_read_without_the_sites_privacy(files, tmp_path):
    """The privacy group is each site's own; the app that reads the coordinator's settings has none."""
    from fed_diffmic.config.compose import config_from_run_config

    settings = ["consortium.classes=[no,yes]", "consortium.task=multiclass", "model.norm=group", "stages=tiny"]
    settings += ["model.encoder_norm=group", "stages.guidance.steps=1", "stages.diffusion.steps=1"]
    settings += ["strategy=fedsgd", "strategy.noise_share=0.7", "strategy.secure_aggregation=masked"]
    given = start.run_config(config_of(files, tmp_path / "run", *settings), ["alpha", "beta", "gamma"])
    assert config_from_run_config(given).strategy.name == "fedsgd"
