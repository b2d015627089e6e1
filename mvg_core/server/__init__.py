"""The HTTP service that the 3D Slicer module talks to: on this machine as a worker, or on another one.

Nothing is imported here, so that `mvg_core.server.wire` needs NumPy only. The protocol: docs/reference/server.md.
"""
