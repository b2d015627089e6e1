"""Empty: the configs are made of `mvg_core` and MONAI."""
