"""What masking is for: the attack that reads an image off one update reads nothing off what a coordinator sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from fed_diffmic.config.compose import compose
from fed_diffmic.exchange.masking.driver import masked_sum
from fed_diffmic.exchange.masking.fixed_point import FixedPoint
from fed_diffmic.privacy.inversion.linear import positions_of, solve_patches
from fed_diffmic.privacy.inversion.report import MARGIN_DB, Attempt, best_psnr
from fed_diffmic.privacy.inversion.subject import Subject, make_subject
from tests.exchange.masking.parties import SESSION, Parties

SETTINGS = ["model=tiny", "stages=tiny", "model.image_side=32", "model.crop=16",
            "model.guidance_backbone=vit_tiny_patch16_224", "model.prior_init=own"]  # fmt: skip
BOUND = 64.0


def solved(subject: Subject, gradient: dict[str, torch.Tensor], images: torch.Tensor) -> Attempt:
    """The attack's best picture against the images behind a gradient, and the best of one public guess."""
    (prefix,) = positions_of(gradient)
    guess = solve_patches(gradient, prefix)
    real, public = images.double().numpy(), subject.public.double().numpy()
    chance = best_psnr(np.concatenate([public.mean(axis=0)[None], public[:1]]), real)[0]
    assert guess is not None and bool(torch.isfinite(guess).all())
    return Attempt("linear", len(real), "", best_psnr(subject.pixels(guess), real)[0], chance, None)


def test_the_image_that_an_update_gives_is_not_in_the_masked_update_nor_in_the_sum() -> None:
    subjects = [make_subject(compose(None, SETTINGS), stage="guidance", batch=1, seed=seed) for seed in range(3)]
    first = subjects[0]
    subjects = [replace(subject, start=first.start) for subject in subjects]  # all were sent the same model
    gradients = [subject.gradient() for subject in subjects]
    names = sorted(gradients[0])
    flat = [np.concatenate([g[name].numpy().ravel() for name in names]) for g in gradients]
    form = FixedPoint.finest(3, BOUND, 32)
    session = replace(SESSION, bits=32, fraction=form.fraction, length=len(flat[0]))

    def read(words: np.ndarray, summands: int) -> dict[str, torch.Tensor]:
        """A gradient as a coordinator would read it out of words."""
        numbers, found, at = form.decode(words) / summands, {}, 0
        for name in names:
            size = gradients[0][name].numel()
            found[name] = torch.from_numpy(numbers[at : at + size]).float().reshape(gradients[0][name].shape)
            at += size
        return found

    parties = Parties(3)
    words = {name: form.encode(numbers) for name, numbers in zip(parties.names, flat, strict=True)}
    seen: dict[str, np.ndarray] = {}
    for name in parties.names:
        parties.sites[name].mask = watched(parties.sites[name].mask, name, seen)  # type: ignore[method-assign]
    total, _ = masked_sum(parties.coordinator(session), parties.sites, words)

    plain = solved(first, read(words[parties.names[0]], 1), first.images)
    masked = solved(first, read(seen[parties.names[0]], 1), first.images)
    summed = solved(first, read(total, 3), torch.cat([subject.images for subject in subjects]))
    assert plain.psnr is not None and plain.psnr > 50 and plain.succeeded
    for attempt in (masked, summed):
        assert attempt.psnr is not None and attempt.psnr < attempt.chance + MARGIN_DB and not attempt.succeeded, attempt


def watched(mask, name: str, seen: dict[str, np.ndarray]):  # type: ignore[no-untyped-def]
    """A site's step whose answer the coordinator keeps."""

    def answer(*given: object) -> np.ndarray:
        seen[name] = mask(*given)
        return seen[name]

    return answer
