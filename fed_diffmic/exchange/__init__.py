"""What crosses the boundary between coordinator and site: payloads, their screening, failure codes."""
