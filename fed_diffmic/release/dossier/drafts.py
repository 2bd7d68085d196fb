"""Drafts that people complete: a data protection impact assessment, and technical documentation.

The headings are those of Article 35(7) of Regulation (EU) 2016/679 (GDPR) and of Annex IV of Regulation (EU) 2024/1689
(AI Act). Under each stands what the run's files say, and blanks for what only people can know. Neither is legal advice,
and no heading is complete because something stands below it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fed_diffmic.release.dossier.facts import Block, blank, section, text

Section = Mapping[str, Any]
_DPO, _CONTROLLER, _PROVIDER = "the data protection officer", "the controller", "the provider"
_DRAFT = (
    "A draft. It is complete only when every blank is filled in and a person has signed it. It is not legal advice, "
    "and the model is for research, not a medical device."
)


def drafts(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """Both drafts.

    Args:
        sections: of the dossier, whose facts they repeat.
    """
    known = {str(part["id"]): part for part in sections}
    return [_dpia(known), _annex_iv(known)]


def _from(known: Mapping[str, Section], *keys: str) -> list[Block]:
    """What the run's files say: tables, lists, warnings and what is missing, without what is to be filled in."""
    blocks = [block for key in keys for block in known[key]["blocks"]]
    return [block for block in blocks if block["kind"] != "blank"]


def _dpia(known: Mapping[str, Section]) -> dict[str, Any]:
    parts = [
        section(
            "dpia-a",
            "1. Systematic description of the processing and its purposes (Art. 35(7)(a))",
            blank("Purpose of the processing; the legitimate interest, where that is the ground", _CONTROLLER),
            blank(
                "Controllers and processors, joint controllers (Art. 26), recipients, transfers, retention", _CONTROLLER
            ),
            text("What is processed, and by what, as far as the run's files say:"),
            *_from(known, "data", "training"),
        ),
        section(
            "dpia-b",
            "2. Necessity and proportionality (Art. 35(7)(b))",
            blank(
                "Legal basis (Art. 6 and Art. 9), information of the patients, their rights and how they are met", _DPO
            ),
            blank("Why the purpose needs these data, and why no fewer would do", _CONTROLLER),
            text("Images stay at the sites; what crosses is bounded by each site's policy and its signed study."),
        ),
        section(
            "dpia-c",
            "3. Risks to the rights and freedoms of the patients (Art. 35(7)(c))",
            *_from(known, "threats"),
            blank("Likelihood and severity of each risk, for the patients, not for the hospital", _DPO),
        ),
        section(
            "dpia-d",
            "4. Measures that address the risks (Art. 35(7)(d))",
            *_from(known, "privacy", "provenance"),
            blank("Measures at each site: access, backups, training of staff, what to do after a breach", "each site"),
        ),
        section(
            "dpia-e",
            "5. Advice, views and review",
            blank("Advice of the data protection officer (Art. 35(2))", _DPO),
            blank("Views of patients or their representatives, or why they were not sought (Art. 35(9))", _CONTROLLER),
            blank("Whether prior consultation is needed (Art. 36)", _DPO),
            blank("Date of the next review (Art. 35(11)), names and signatures", _CONTROLLER),
        ),
    ]
    about = f"Data protection impact assessment. {_DRAFT}"
    return {
        "id": "dpia",
        "title": "Draft: data protection impact assessment (GDPR, Art. 35)",
        "about": about,
        "sections": parts,
    }


def _annex_iv(known: Mapping[str, Section]) -> dict[str, Any]:
    about = (
        f"Technical documentation after Annex IV. {_DRAFT} Whether the system is one of high risk, and which of this "
        "applies, a person decides."
    )
    parts = [
        section(
            "annex-1",
            "1. General description of the system",
            blank("(a) Intended purpose, name of the provider, version and its relation to earlier ones", _PROVIDER),
            *_from(known, "model-card"),
            blank("(b) How it interacts with hardware or software that is not part of it", _PROVIDER),
            text("(c) Versions of software:"),
            *_from(known, "materials"),
            blank("(d) to (g) Forms in which it is put into service, hardware, photographs, user interface", _PROVIDER),
            blank("(h) Instructions for use for the deployer", _PROVIDER),
        ),
        section(
            "annex-2",
            "2. Elements of the system and how it was developed",
            text(
                "(a) to (c) Methods, design and architecture: the program's documents (model, architecture). This run:"
            ),
            *_from(known, "training"),
            blank("(b) Design choices and assumptions, what is optimised, trade-offs", _PROVIDER),
            text("(d) Data:"),
            *_from(known, "data"),
            blank("(d) Provenance, selection, labelling and cleaning of the data", "each site"),
            blank("(e) Human oversight (Art. 14) and the technical measures for it", _PROVIDER),
            blank("(f) Changes that are determined beforehand", _PROVIDER),
            text("(g) Validation and testing:"),
            *_from(known, "evaluation"),
            blank("(g) Test logs and reports, dated and signed by the persons responsible", _PROVIDER),
            text("(h) Cybersecurity:"),
            *_from(known, "threats", "provenance"),
        ),
        section(
            "annex-3",
            "3. Monitoring, functioning and control",
            text("Capabilities and limits, for groups of persons as far as they were measured:"),
            *_from(known, "sureness"),
            blank(
                "Foreseeable unintended outcomes and sources of risk, oversight, specification of the input", _PROVIDER
            ),
        ),
        section(
            "annex-4",
            "4. Appropriateness of the performance metrics",
            blank("Why these metrics, and which error is the worse one for the patients", _PROVIDER),
        ),
        section("annex-5", "5. Risk management system (Art. 9)", blank("The risk management system", _PROVIDER)),
        section("annex-6", "6. Changes through the lifecycle", blank("Relevant changes by the provider", _PROVIDER)),
        section(
            "annex-7",
            "7. Harmonised standards applied",
            blank("Standards applied in full or in part, or how else the requirements are met", _PROVIDER),
        ),
        section("annex-8", "8. EU declaration of conformity (Art. 47)", blank("A copy of the declaration", _PROVIDER)),
        section(
            "annex-9",
            "9. Monitoring after it is put on the market (Art. 72)",
            blank("The system for it, and the plan of Art. 72(3)", _PROVIDER),
        ),
    ]
    title = "Draft: technical documentation (AI Act, Annex IV)"
    return {"id": "annex-iv", "title": title, "about": about, "sections": parts}
