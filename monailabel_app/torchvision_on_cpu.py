"""Lets PyPI's torchvision, a CUDA build, be imported beside a CPU build of torch; `make label-env` installs it.

Its compiled operators cannot be loaded then, and without their schemas `import torchvision` fails. MONAI Label's
`monaibundle` app needs torchvision, though none of its operators.
"""

import re
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path


class _DeclaresOperators(MetaPathFinder):
    """Acts when torchvision is imported for the first time, and finds nothing itself."""

    def find_spec(self, name, path=None, target=None):
        """Declare the operators' schemas if the two packages do not belong together."""
        if name == "torchvision":
            sys.meta_path.remove(self)
            if _is_for_cuda():
                import torch

                if torch.version.cuda is None:
                    # Kept, or the operators would disappear with it.
                    self.library = torch.library.Library("torchvision", "DEF")
                    for operator in ("nms", "qnms"):
                        self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
                    _kept.append(self)
        return None


_kept: list[_DeclaresOperators] = []


def _is_for_cuda() -> bool:
    found = PathFinder.find_spec("torchvision")
    if found is None or found.origin is None:
        return False
    version = Path(found.origin).with_name("version.py")
    return version.is_file() and re.search(r"__version__\s*=\s*'[^']*\+cu\d", version.read_text()) is not None


sys.meta_path.insert(0, _DeclaresOperators())
