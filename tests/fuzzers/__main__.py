"""One fuzzer for some time."""

from __future__ import annotations

import secrets
import sys

from fuzzers import fuzz

seed = int(sys.argv[3]) if len(sys.argv) > 3 else secrets.randbits(32)
sys.stdout.write(f"{sys.argv[1]}: seed {seed}\n")
sys.stdout.flush()
sys.stdout.write(f"{sys.argv[1]}: {fuzz(sys.argv[1], float(sys.argv[2]), seed)} inputs\n")
