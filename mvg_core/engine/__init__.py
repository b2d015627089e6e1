"""The volume engine: slices become a dependable answer in 3D."""

from mvg_core.engine.config import PRESETS, EngineConfig
from mvg_core.engine.engine import VolumeEngine
from mvg_core.engine.watch import Cancelled, Watch

__all__ = ["PRESETS", "Cancelled", "EngineConfig", "VolumeEngine", "Watch"]
