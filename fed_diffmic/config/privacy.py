"""Group ``privacy``: differential privacy of a site's training (DP-SGD; Abadi et al. 2016), its unit and its budget.

It belongs to whoever holds the data: a real site reads it from its own ``site.yaml`` and the coordinator neither sends
nor sees it; a simulation gives the same one to every virtual site.
"""

from __future__ import annotations

from dataclasses import dataclass

from fed_diffmic.config.fields import Checked, option


@dataclass(frozen=True)
class PrivacyConfig(Checked):
    """What is protected, how much noise protects it, and how much may be spent in all."""

    name: str = option(
        "none", "none: updates carry no noise; dp_sgd: differentially private training", choices=("none", "dp_sgd")
    )
    mechanism: str = option(
        "local",
        "local: each site adds all the noise that its own claim needs; distributed: it adds a share, and claims what "
        "it and honest_sites others add together: one step a round, strategy=fedsgd, and between hospitals "
        "strategy.secure_aggregation=masked",
        choices=("local", "distributed"),
    )
    honest_sites: int = option(
        0,
        "distributed: how many of the other sites in each sum this one takes to be honest, that is to add their share "
        "and to collude with nobody; the epsilon that is held against budget rests on it. At most policy.min_sites",
        ge=0,
        le=10_000,
    )
    stages: list[str] = option(
        doc="stages that train with privacy; another stage that trains on the same data voids the claim, and needs "
        "allow_unprotected",
        factory=lambda: ["guidance", "diffusion"],
        choices=("guidance", "diffusion", "plain"),
    )
    allow_unprotected: bool = option(
        False, "let stages outside `stages` train without privacy: the ledger then says that the claim is void"
    )
    unit: str = option(
        "patient",
        "what one more or one less is indistinguishable: an image, or a patient (group) with up to max_images images",
        choices=("image", "patient"),
    )
    max_images: int = option(8, "unit patient: images of a patient that take part in a step, at random", ge=1, le=1024)
    max_grad_norm: float = option(1.0, "clipping bound C: largest L2 norm of one unit's gradient", gt=0, le=1e6)
    noise_multiplier: float | None = option(
        None, "standard deviation of the noise over C; null: computed from epsilon, delta and the rounds planned", gt=0
    )
    epsilon: float | None = option(
        8.0,
        "target of one run, all its private stages and released counts together; null: noise_multiplier says it",
        gt=0,
    )
    delta: float = option(1e-5, "probability that the bound fails; below one over the number of units", gt=0, lt=1)
    budget: float | None = option(
        None,
        "largest epsilon that the units may spend over all runs; null: epsilon. Written into the ledger when it "
        "begins; later only `fed-diffmic ledger grant` raises it",
        gt=0,
    )
    budget_alone: float | None = option(
        None,
        "distributed: largest epsilon over all runs if no other site adds noise, a second hard stop beside budget; has "
        "to be given. Later only `fed-diffmic ledger grant --alone` raises it",
        gt=0,
    )
    accountant: str = option(
        "rdp",
        "how steps compose: rdp (Renyi; Mironov 2017) or prv (numerical; Gopi et al. 2021)",
        choices=("rdp", "prv"),
    )
    logical_batch: int = option(64, "expected units in a step (Poisson sampling); the loss is divided by it", ge=1)
    physical_batch: int = option(16, "units that go through the network at once; changes no result", ge=1)
    nominal_units: int = option(
        0,
        "public, rounded number of training units from which the sample rate follows; 0: the true number, which the "
        "privacy statement then lists as outside the guarantee",
        ge=0,
    )
    weight: int = option(
        1,
        "weight of the site's update in the average, a public constant (true counts leak); 0: nominal_units, or where "
        "that is 0 too the number of units that the noised class counts add up to",
        ge=0,
        le=10_000_000,
    )
    count_noise: float = option(
        20.0,
        "noise multiplier of the numbers of units of each class that leave and balance the loss, drawn once a run; 0: "
        "none leave and classes count as equally frequent",
        ge=0,
    )
    validation: str = option(
        "suppressed",
        "metrics over validation and test images: suppressed (the last round is kept, nothing is calibrated), "
        "or listed: they leave as they are and the privacy statement names them as outside the guarantee",
        choices=("suppressed", "listed"),
    )
    test_seed: int | None = option(
        None,
        "tests only: noise and sampling from this seed instead of the operating system; the run is then marked "
        "as without guarantee",
        ge=0,
        lt=2**31,
    )
