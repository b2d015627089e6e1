"""How good answers are: metrics by subject, statistics over subjects, and a report of both.

Needs PyTorch, MONAI and SciPy; the plots need matplotlib.
"""
