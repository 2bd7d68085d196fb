"""What Flower's connection takes for the end of everything, and what is only a bad moment."""

import httpx
import pytest

from fed_diffmic.transport.fleet import retry_invoker, sentence


@pytest.mark.parametrize(
    ("error", "words", "gives_up"),
    [
        (httpx.ConnectTimeout("_ssl.c:989: The handshake operation timed out"), "in time", False),
        (httpx.ConnectError("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation"), "reached", False),
        (httpx.ConnectError("[Errno 111] Connection refused"), "reached", False),
        (httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] unable to get local issuer"), "not signed by", True),
        (httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER] wrong version number"), "TLS handshake failed", True),
    ],
)
def test_a_handshake_that_was_only_slow_or_cut_is_tried_again(error, words, gives_up):
    invoker = retry_invoker(1.0, 2.0, 3.0)()
    assert words in sentence(error)
    assert invoker.should_giveup is not None and invoker.should_giveup(error) is gives_up
