"""The rooms behind main.py. Here stands what must be done before PyTorch and matplotlib are imported."""

import os
import sys

if sys.version_info < (3, 10):
    sys.exit(f"error: Python 3.10 or newer is needed, this is {sys.version.split()[0]}: start main.py with another one")


def tell_ctrl_c_in_one_line(kind, error, traceback):  # noqa: ANN001, ANN201 - Python 3.9 is to read this file
    """Replace the traceback of Ctrl-C while PyTorch is imported, which takes seconds."""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped before anything was done", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


if sys.excepthook is sys.__excepthook__:
    sys.excepthook = tell_ctrl_c_in_one_line

# matplotlib's import fails where MPLBACKEND names a backend that is not installed, as a notebook's may. No window is
# opened here, so that none is needed.
if "matplotlib" not in sys.modules and "MPLBACKEND" in os.environ:
    backend = os.environ.pop("MPLBACKEND")
    try:
        import matplotlib

        matplotlib.rcParams["backend"] = backend
    except ValueError:  # no such backend
        pass
    finally:
        os.environ["MPLBACKEND"] = backend
