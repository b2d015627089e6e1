"""Grids in patient space: expected positions are worked by hand, orientations are all 48."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvg_core.volume import Geometry, GeometryError, Plane, Volume

# LPS, as DICOM stores axial slices: i to Left, j to Posterior, k to Superior.
DICOM_AXIAL = np.array([[-0.5, 0, 0, 100], [0, -0.5, 0, 50], [0, 0, 3, -20], [0, 0, 0, 1]])


def signed_permutations() -> list[np.ndarray]:
    """The 48 ways to lay three index axes along three world axes."""
    return [
        np.eye(3)[:, list(order)] * signs
        for order in permutations(range(3))
        for signs in product((1.0, -1.0), repeat=3)
    ]


def rotation(degrees_x: float, degrees_y: float, degrees_z: float) -> np.ndarray:
    x, y, z = np.deg2rad((degrees_x, degrees_y, degrees_z))
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


def geometry(
    direction: np.ndarray,
    spacing_mm: tuple[float, float, float] = (0.7, 1.3, 4.0),
    shape: tuple[int, int, int] = (4, 5, 6),
) -> Geometry:
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing_mm
    affine[:3, 3] = (-31.5, 12.25, 400.0)
    return Geometry(shape, affine)


# --- positions ---


def test_index_to_world_worked_by_hand() -> None:
    grid = Geometry((512, 512, 40), DICOM_AXIAL)
    np.testing.assert_array_equal(grid.index_to_world((0, 0, 0)), [100, 50, -20])
    np.testing.assert_array_equal(grid.index_to_world((10, 20, 2)), [100 - 5, 50 - 10, -20 + 6])
    np.testing.assert_array_equal(
        grid.world_to_index(np.array([[95, 40, -14], [100, 50, -20]])), [[10, 20, 2], [0, 0, 0]]
    )
    assert grid.spacing_mm == (0.5, 0.5, 3.0)
    assert grid.axis_codes == ("L", "P", "S")
    np.testing.assert_array_equal(grid.direction, np.diag([-1, -1, 1]))


@pytest.mark.parametrize("turn", [(0, 0, 0), (10, -25, 5), (45, 0, 0), (30, 40, 50)])
def test_index_to_mm_to_index_for_all_48_orientations(turn: tuple[float, float, float]) -> None:
    ijk = np.array(list(product((0, 1, 3), (0, 2, 4), (0, 5))), dtype=float)
    for direction in signed_permutations():
        grid = geometry(rotation(*turn) @ direction)
        np.testing.assert_allclose(grid.world_to_index(grid.index_to_world(ijk)), ijk, atol=1e-10)
        np.testing.assert_allclose(grid.spacing_mm, (0.7, 1.3, 4.0))
        np.testing.assert_allclose(np.linalg.norm(grid.direction, axis=0), 1.0)


@given(
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.tuples(*[st.floats(0.05, 20)] * 3),
    st.tuples(*[st.floats(-1000, 1000)] * 3),
)
def test_world_to_index_inverts_any_grid(
    turn: tuple[float, float, float], spacing: tuple[float, float, float], ijk: tuple[float, float, float]
) -> None:
    grid = geometry(rotation(*turn), spacing)
    np.testing.assert_allclose(grid.world_to_index(grid.index_to_world(ijk)), ijk, atol=1e-6)


# --- orientation ---


def test_axis_codes_for_all_48_orientations() -> None:
    for direction in signed_permutations():
        expected = tuple(
            "LPI"[row] if column[row] < 0 else "RAS"[row] for column in direction.T for row in [abs(column).argmax()]
        )
        assert geometry(direction).axis_codes == expected
        # 20 degrees about each axis changes no nearest direction
        assert geometry(rotation(20, -20, 20) @ direction).axis_codes == expected


def test_anatomical_axes_are_three_different_ones_at_45_degrees() -> None:
    for turn in [(45, 0, 0), (0, 45, 0), (0, 0, 45), (45, 45, 45), (45, 35.264, 0)]:
        for direction in signed_permutations():
            grid = geometry(rotation(*turn) @ direction)
            axes = [grid.anatomical_axis(plane) for plane in ("axial", "coronal", "sagittal")]
            assert sorted(axes) == [0, 1, 2]
            assert [grid.plane_of_axis(axis) for axis in axes] == ["axial", "coronal", "sagittal"]
            assert len({code in "RL" for code in grid.axis_codes}) == 2


def test_anatomical_axis_of_a_sagittal_acquisition() -> None:
    # i to Posterior, j to Inferior, k to Right: slices are sagittal
    grid = geometry(np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]]))
    assert grid.axis_codes == ("P", "I", "R")
    assert grid.anatomical_axis("sagittal") == 2
    assert grid.anatomical_axis("coronal") == 0
    assert grid.anatomical_axis("axial") == 1


def test_display_points_as_radiologists_expect_for_all_48_orientations() -> None:
    posterior, inferior, left = (0, -1, 0), (0, 0, -1), (-1, 0, 0)
    down_and_across: dict[Plane, tuple] = {
        "axial": (posterior, left),
        "coronal": (inferior, left),
        "sagittal": (inferior, posterior),
    }
    for direction in signed_permutations():
        grid = geometry(direction)
        for plane, (down, across) in down_and_across.items():
            shown = grid.display(grid.anatomical_axis(plane))
            row = direction[:, shown.row_axis] * (-1 if shown.flip_rows else 1)
            column = direction[:, shown.column_axis] * (-1 if shown.flip_columns else 1)
            np.testing.assert_array_equal(row, down)
            np.testing.assert_array_equal(column, across)


def test_unknown_plane_is_refused_with_the_known_ones() -> None:
    with pytest.raises(GeometryError, match=r"'transverse'.*axial, coronal, sagittal"):
        geometry(np.eye(3)).anatomical_axis("transverse")  # pyright: ignore[reportArgumentType]


# --- comparison ---


def moved(grid: Geometry, mm: tuple[float, float, float]) -> Geometry:
    affine = grid.affine.copy()
    affine[:3, 3] += mm
    return Geometry(grid.shape, affine)


def test_is_close_compares_corners_in_mm() -> None:
    grid = geometry(np.eye(3))
    assert grid.is_close(moved(grid, (0.0009, 0, 0)))
    assert not grid.is_close(moved(grid, (0.0011, 0, 0)))
    assert grid.is_close(moved(grid, (0, 0.4, 0.3)), tolerance_mm=0.5001)
    assert not grid.is_close(Geometry((4, 5, 7), grid.affine))


def test_is_close_sees_a_small_angle_over_a_long_side() -> None:
    # 1e-4 rad over 400 voxels of 1 mm moves the far corner by 0.04 mm
    turned = np.eye(4)
    turned[:3, :3] = rotation(0, 0, np.rad2deg(1e-4))
    assert not Geometry((400, 2, 2), np.eye(4)).is_close(Geometry((400, 2, 2), turned))
    assert Geometry((400, 2, 2), np.eye(4)).is_close(Geometry((400, 2, 2), turned), tolerance_mm=0.05)


def test_is_close_sees_the_thickness_of_a_single_slice() -> None:
    assert not Geometry((9, 9, 1), np.diag([1, 1, 1, 1])).is_close(Geometry((9, 9, 1), np.diag([1, 1, 5, 1])))


def test_overlaps() -> None:
    grid = Geometry((10, 10, 10), np.eye(4))  # -0.5 .. 9.5 mm
    assert grid.overlaps(grid)
    assert grid.overlaps(moved(grid, (9, 9, -9)))
    assert not grid.overlaps(moved(grid, (10, 0, 0)))  # faces touch
    assert not grid.overlaps(moved(grid, (0, 0, 11)))
    assert Geometry((4, 4, 1), np.eye(4)).overlaps(Geometry((4, 4, 1), np.eye(4)))


# --- what cannot be constructed ---


def test_affine_is_copied_and_read_only() -> None:
    affine = np.eye(4)
    grid = Geometry((2, 2, 2), affine)
    affine[0, 0] = 7
    assert grid.spacing_mm[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 7


@pytest.mark.parametrize(
    ("affine", "complaint"),
    [
        (np.eye(3), r"shape \(3, 3\), needed \(4, 4\)"),
        (np.diag([1, np.nan, 1, 1]), "NaN or infinite"),
        (np.diag([1, np.inf, 1, 1]), "NaN or infinite"),
        (np.diag([1, 1, 0, 1]), r"singular.*repair the file's orientation header"),
        (np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular"),  # two parallel axes
        (np.array([[1, 1, 0, 0], [0, 1e-5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular"),  # nearly
        (np.diag([1, 1, 1, 2]), "last row"),
    ],
)
def test_bad_affine_is_refused(affine: np.ndarray, complaint: str) -> None:
    with pytest.raises(GeometryError, match=complaint):
        Geometry((2, 2, 2), affine)


def test_microscopic_spacing_is_not_singular() -> None:
    assert Geometry((2, 2, 2), np.diag([1e-6, 1e-6, 1e-6, 1])).spacing_mm == (1e-6, 1e-6, 1e-6)


@pytest.mark.parametrize("shape", [(0, 2, 2), (2, -1, 2), (2, 2, 2.0), (2, 2), (2, 2, 2, 2)])
def test_bad_shape_is_refused(shape: tuple) -> None:
    with pytest.raises(GeometryError, match="grid"):
        Geometry(shape, np.eye(4))


def test_shape_becomes_python_integers() -> None:
    grid = Geometry(np.array([2, 3, 4]), np.eye(4))  # pyright: ignore[reportArgumentType]
    assert grid.shape == (2, 3, 4)
    assert all(type(n) is int for n in grid.shape)


# --- Volume ---


def test_volume_needs_an_array_of_the_grids_shape() -> None:
    grid = Geometry((2, 3, 4), np.eye(4))
    array = np.zeros((2, 3, 4), np.int16)
    volume = Volume(array, grid)
    assert volume.array is array
    with pytest.raises(GeometryError, match=r"shape \(4, 3, 2\), its grid \(2, 3, 4\)"):
        Volume(array.T, grid)
    with pytest.raises(GeometryError, match="shape"):
        volume.with_array(array[:1])


@pytest.mark.parametrize("kind", [complex, object, "U3"])
def test_volume_holds_plain_numbers(kind: type | str) -> None:
    with pytest.raises(ValueError, match="convert them to integers or real numbers"):
        Volume(np.zeros((1, 1, 1), dtype=kind), Geometry((1, 1, 1), np.eye(4)))


def test_with_array_keeps_the_grid() -> None:
    volume = Volume.from_array(np.zeros((2, 3, 4)), (1, 2, 3))
    other = volume.with_array(np.ones((2, 3, 4), bool))
    assert other.geometry is volume.geometry
    assert other.array.dtype == bool


def test_from_array_points_to_right_anterior_superior() -> None:
    volume = Volume.from_array(np.zeros((2, 3, 4)), (0.5, 2, 3))
    np.testing.assert_array_equal(volume.geometry.affine, np.diag([0.5, 2, 3, 1]))
    assert Volume.from_array(np.zeros((5, 6))).geometry.shape == (5, 6, 1)
    with pytest.raises(GeometryError, match="three numbers"):
        Volume.from_array(np.zeros((2, 3)), (1, 1))
    with pytest.raises(GeometryError, match="three axes"):
        Volume.from_array(np.zeros((2, 3, 4, 5)))
    with pytest.raises(GeometryError, match="singular"):
        Volume.from_array(np.zeros((2, 3, 4)), (1, 0, 1))
