"""Where weight files are found, and that a changed one is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mvg_core import weights
from mvg_core.weights import (
    WeightsError,
    check_checksum,
    file_sha256,
    find_weights,
    onnx_folders,
    read_numbers,
    user_folder,
)

SHA256_OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user folder of its own, in a working directory without any weights."""
    monkeypatch.setenv("MVG_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def write(path: Path, content: bytes = b"abc") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_checksum_is_sha256(tmp_path: Path) -> None:
    assert file_sha256(write(tmp_path / "x")) == SHA256_OF_ABC


def test_a_path_is_taken_as_it_is(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "mine.pt")
    assert find_weights(path) == path
    assert find_weights("mine.pt") == Path("mine.pt")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert find_weights("~/mine.pt") == path


def test_a_name_is_looked_up_in_the_users_folder(home: Path) -> None:
    own = write(home / "weights" / "liver.pt")
    assert find_weights("liver") == own


def test_shipped_weights_come_from_the_wheel_or_the_checkout_unless_the_user_has_others(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel, checkout = tmp_path / "wheel" / "model.pt", tmp_path / "checkout" / "model.pt"
    monkeypatch.setattr(weights, "_SHIPPED", (wheel, checkout))
    with pytest.raises(WeightsError, match=r"'mvg_compact' are in none of .*wheel.*install the wheel again"):
        find_weights()
    assert find_weights(write(checkout)) == checkout
    assert find_weights() == checkout
    write(wheel)
    assert find_weights("mvg_compact") == wheel
    own = write(home / "weights" / "mvg_compact.pt")
    assert find_weights() == own


def test_a_folder_named_like_the_weights_is_not_mistaken_for_them(home: Path, tmp_path: Path) -> None:
    (tmp_path / "liver").mkdir()
    own = write(home / "weights" / "liver.pt")
    assert find_weights("liver") == own


def test_an_unknown_name_says_where_a_file_could_be_put(home: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights 'spleen': use 'mvg_compact', a path .* spleen\.pt into .*home"):
        find_weights("spleen")


def test_a_changed_file_is_refused(home: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "model.pt")
    record = tmp_path / "model.pt.sha256"
    check_checksum(path)  # nothing recorded
    for text in (f"{SHA256_OF_ABC}  model.pt\n", f"{SHA256_OF_ABC}\n", SHA256_OF_ABC):
        record.write_text(text)
        assert find_weights(path) == path
    path.write_bytes(b"abd")
    with pytest.raises(WeightsError, match=r"changed or damaged: its SHA-256 is .*model\.pt\.sha256 says ba7816bf8f01"):
        find_weights(path)
    record.write_text("")
    with pytest.raises(WeightsError, match=r"says nothing"):
        find_weights(path)


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_DATA_HOME", "place/mvg"),
        ("win32", "LOCALAPPDATA", "place/mvg"),
        ("linux", "", "me/.local/share/mvg"),
        ("win32", "", "me/AppData/Local/mvg"),
        ("darwin", "", "me/Library/Application Support/mvg"),
    ],
)
def test_the_users_folder_follows_the_system(
    platform: str, variable: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MVG_HOME", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "me")
    monkeypatch.setattr(weights.sys, "platform", platform)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "place"))
    assert user_folder() == tmp_path / expected
    monkeypatch.setenv("MVG_HOME", str(tmp_path / "chosen"))
    assert user_folder() == tmp_path / "chosen"


def test_onnx_files_are_looked_for_beside_the_weights_first(home: Path, tmp_path: Path) -> None:
    package = Path(weights.__file__).parent / "_weights"
    assert onnx_folders(tmp_path / "m" / "model.pt") == (tmp_path / "m", package, home / "onnx")
    assert onnx_folders(package / "model.pt") == (package, home / "onnx")


def test_numbers_are_shown_for_the_file_they_were_measured_with_only(tmp_path):
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"weights")
    assert read_numbers(weights) == {}
    record = {"checkpoint_sha256": file_sha256(weights), "demo": {"dice": 0.9}}
    (tmp_path / "model.numbers.json").write_text(json.dumps(record))
    assert read_numbers(weights) == record
    weights.write_bytes(b"others")
    assert read_numbers(weights) == {}
