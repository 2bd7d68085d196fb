"""A process that is split off while a stream of noise lives does not make the parent's noise again."""

import os

import pytest

from fed_diffmic.privacy.randomness import Randomness


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not split off here")
def test_a_forked_process_has_noise_of_its_own():
    stream, seeded = Randomness(), Randomness(3)
    stream.normal(5)
    seeded.normal(5)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, stream._bytes(32) + seeded._bytes(32))
        os._exit(0)
    os.waitpid(child, 0)
    found = os.read(read, 64)
    os.close(read)
    os.close(write)
    assert len(found) == 64
    assert found[:32] != stream._bytes(32)
    assert found[32:] == seeded._bytes(32)  # a test's seed repeats, which is what it is for
