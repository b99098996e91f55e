"""The modules behind main.py.

matplotlib is imported here, before any of them, because its import fails where MPLBACKEND names a backend that is not
installed. No module opens a window, so the backend does not matter; a notebook gets the one it asked for.
"""

import os
import sys
from contextlib import suppress

if "matplotlib" not in sys.modules and "MPLBACKEND" in os.environ:
    backend = os.environ.pop("MPLBACKEND")
    try:
        import matplotlib

        with suppress(ValueError):  # no such backend
            matplotlib.rcParams["backend"] = backend
    finally:
        os.environ["MPLBACKEND"] = backend
