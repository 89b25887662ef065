"""Import-only stand-in for ``torchvision`` on a machine without CUDA.

SGLang's model configurations and transformers' image utilities import torchvision while they load,
even for a text model; a torchvision that does not match the CPU build of torch fails there.
KVFlow's launcher puts this folder on the path of the engine and its children, on a CPU machine
only.  Whatever is taken from it raises when called.
"""

from __future__ import annotations

from . import io as io
from . import transforms as transforms

__version__ = "0.0.0+kvflow.standin"
