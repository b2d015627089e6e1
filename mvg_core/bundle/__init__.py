"""What the configs of the MONAI bundle (`bundle/configs`) are made of.

Nothing is imported here: the folder of reference cases is looked after without torch and MONAI.
"""
