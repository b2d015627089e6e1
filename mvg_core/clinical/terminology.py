"""Coded names of what a label is, as DICOM and 3D Slicer use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

# PS3.5, table 6.2-1: SH holds 16 characters, LO 64. Slicer's entries have ~ ^ | as separators.
_CODE_LENGTH = 16
_MEANING_LENGTH = 64
_SEPARATORS = "~^|\\"
# The words of slicerio, which reads such mappings too.
_KEYS = {"category": "category", "type": "type", "typeModifier": "type_modifier", "anatomicRegion": "region",
         "anatomicRegionModifier": "region_modifier"}
_CONTEXT = "Segmentation category and type - 3D Slicer General Anatomy list"
_REGION_CONTEXT = "Anatomic codes - DICOM master list"


@dataclass(frozen=True)
class Code:
    """One term of a coding scheme.

    Attributes:
        scheme: for example SCT (SNOMED CT), at most 16 characters.
        value: at most 16 characters.
        meaning: for people, at most 64 characters.

    Raises:
        ValueError: a part is empty, too long or holds a separator.
    """

    scheme: str
    value: str
    meaning: str

    def __post_init__(self) -> None:
        for part in fields(self):
            text = getattr(self, part.name)
            longest = _MEANING_LENGTH if part.name == "meaning" else _CODE_LENGTH
            if not isinstance(text, str) or not 0 < len(text.strip()) <= longest:
                raise ValueError(f"{part.name} {text!r} of a code must be a text of 1 to {longest} characters")
            if not text.isprintable() or set(text) & set(_SEPARATORS):
                raise ValueError(f"{part.name} {text!r} of a code must not hold any of {_SEPARATORS} or a line break")

    def __str__(self) -> str:
        return f"{self.scheme}^{self.value}^{self.meaning}"


@dataclass(frozen=True)
class Terminology:
    """What a segment is: DICOM's segmented property (category, type, modifier) and where in the body."""

    category: Code
    type: Code
    type_modifier: Code | None = None
    region: Code | None = None
    region_modifier: Code | None = None

    @classmethod
    def from_mapping(cls, content: Any) -> Terminology:
        """From {"category": [scheme, value, meaning], "type": ...} as a file of names holds it.

        Raises:
            ValueError: something else; says what is needed.
        """
        if not isinstance(content, Mapping) or not {"category", "type"} <= set(content) <= set(_KEYS):
            raise ValueError(f"terminology needs 'category' and 'type', and may have {', '.join(list(_KEYS)[2:])}; "
                             f"found {sorted(map(str, content)) if isinstance(content, Mapping) else content!r}")
        codes = {}
        for key, triplet in content.items():
            if not isinstance(triplet, (list, tuple)) or len(triplet) != 3:
                raise ValueError(f"{key!r} is {triplet!r}, needed [scheme, value, meaning], for example "
                                 '["SCT", "10200004", "Liver"]')
            codes[_KEYS[key]] = Code(*triplet)
        if "region_modifier" in codes and "region" not in codes:
            raise ValueError("'anatomicRegionModifier' needs an 'anatomicRegion'")
        return cls(**codes)

    @property
    def slicer_entry(self) -> str:
        """The value of 3D Slicer's tag TerminologyEntry.

        Source: Slicer developer guide, "Segmentations", section "TerminologyEntry tag".
        """
        parts = (_CONTEXT, self.category, self.type, self.type_modifier, _REGION_CONTEXT, self.region,
                 self.region_modifier)
        return "~".join("^^" if part is None else str(part) for part in parts)


TISSUE = Terminology(Code("SCT", "85756007", "Tissue"), Code("SCT", "85756007", "Tissue"))
"""What a segment is as long as nobody says more; 3D Slicer says the same."""
