"""Errors stay what they are outside MONAI Label's server; within it tests_label/test_stock_bundle.py has them told."""

from __future__ import annotations

from pathlib import Path

import pytest
import starlette.exceptions  # a web server of another kind may run in the same process

from mvg_core.bundle.inferer import InContextInferer
from mvg_core.bundle.prompts_folder import PromptsError
from mvg_core.bundle.references import ReferenceSource
from mvg_core.bundle.served import LoadQueryd, in_monai_label, told_to_clients
from mvg_core.volume_io import VolumeReadError


def test_outside_monai_label_errors_keep_their_type(tmp_path: Path) -> None:
    assert not in_monai_label()
    with pytest.raises(PromptsError), told_to_clients():
        ReferenceSource(tmp_path)()
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    with pytest.raises(VolumeReadError, match="broken"):
        LoadQueryd("image")({"image": str(tmp_path / "broken.nii.gz")})
    with pytest.raises(ValueError, match="no image has this id"):  # and not whatever the working folder holds
        LoadQueryd("image")({"image": ""})


def test_outside_monai_label_a_wrong_preset_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use one of plain, fast") as caught:
        InContextInferer(ReferenceSource(tmp_path), preset="brilliant")

    assert not isinstance(caught.value, starlette.exceptions.HTTPException)
