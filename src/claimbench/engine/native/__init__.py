"""A whole decode step as one call into C: what is left of a token's time once Python and kernel launches are gone.

build.py      compiles decode.c at first use, or says why it cannot
packing.py    matrices in the order in which the step reads them: float32, bfloat16, int8 or int4
decoder.py    NativeDecoder: weights and spec in, logits out
structs.py    what they tell each other
decode.c      the step, and a product of many lines
"""

from __future__ import annotations
