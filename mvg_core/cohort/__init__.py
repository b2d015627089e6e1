"""Many volumes by example: a manifest in, a folder of answers and one table of results out."""

from mvg_core.cohort.cases import CohortCase, CohortSettings
from mvg_core.cohort.manifest import Defaults, Manifest, ManifestError, read_manifest
from mvg_core.cohort.run import CohortResult, News, Workers, run_cohort

__all__ = ["CohortCase", "CohortResult", "CohortSettings", "Defaults", "Manifest", "ManifestError", "News", "Workers",
           "read_manifest", "run_cohort"]
