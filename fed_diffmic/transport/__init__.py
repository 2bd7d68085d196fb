"""Between our payloads and Flower's messages; the only room that touches Flower's internals."""
