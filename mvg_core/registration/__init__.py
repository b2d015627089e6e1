"""Where a reference's labels fall on a query of the same modality: shift, then affine, then demons.

A registration needs no training and knows nothing of organs, so it serves as a first guess of where a structure will
be, as a prior beside the network, and as the baseline that a network has to beat.

Where the reference's labels are known, the match is sought around them: bodies differ, and a heart is not where the
best match of two chests puts it.

Volumes are registered in world space. Pictures and other volumes of one slice are registered in the plane, as they are
displayed; where they have no true scale, both are first fitted to one size. Nothing but the search is repeated: every
step of the search runs on coarse copies, and the result can be applied to any number of volumes on any grid.

Source: Padfield 2012 (correlation of masked images at every shift), Mattes et al. 2003 (mutual information) and
Vercauteren et al. 2009 (demons), as implemented in SimpleITK.
"""

from mvg_core.demons import DemonsConfig, SliceWarp, chain, register_slices, warp_slice
from mvg_core.registration.alignment import Alignment
from mvg_core.registration.config import RegistrationConfig
from mvg_core.registration.find import align, refine, warp_volume

__all__ = ["Alignment", "DemonsConfig", "RegistrationConfig", "SliceWarp", "align", "chain", "refine",
           "register_slices", "warp_slice", "warp_volume"]
