"""How the numbers of an update cross: one file a codec, and what codes a whole set of tensors (``sets``).

A codec turns the difference between two sets of weights into fewer bytes than float32 takes, and says in its docstring
how far a number can be off afterwards. What it leaves out is not lost: it is added to the next difference (error
feedback; Seide et al. 2014, section 3; Karimireddy et al. 2019, Algorithm 2).
"""

from fed_diffmic.exchange.codecs import bfloat16, float32, int4, int8, topk
from fed_diffmic.exchange.codecs.base import Codec, build_codec, codec_names
from fed_diffmic.exchange.codecs.sets import DELTA, Coded, code, coded_schema, is_coded, most_bytes, restore

__all__ = [
    "DELTA",
    "Codec",
    "Coded",
    "bfloat16",
    "build_codec",
    "code",
    "codec_names",
    "coded_schema",
    "float32",
    "int4",
    "int8",
    "is_coded",
    "most_bytes",
    "restore",
    "topk",
]
