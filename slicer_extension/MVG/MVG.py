"""Registers the module MVG in 3D Slicer; what it does is in MVGLib."""

import os

import slicer
from MVGLib.logic import MVGLogic
from MVGLib.widget import MVGWidget  # noqa: F401, found by its name
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleTest


class MVG(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "MVG (label one slice, get the volume)"
        self.parent.categories = ["Segmentation"]
        self.parent.dependencies = ["Segmentations", "Volumes"]
        self.parent.contributors = ["The MVG contributors"]
        self.parent.helpText = (
            "Solve a volume from examples: label one slice and get the others, or choose a solved patient and get "
            "the next one. Segmentation, denoising, inpainting and synthesis, on a CPU, without training.<br><br>"
            "<b>Research use only.</b> This is not a medical device: nothing here may guide a diagnosis or a "
            "treatment. Images stay on this computer unless a server is chosen.<br><br>"
            '<a href="https://github.com/mvg-contributors/MVG/blob/main/docs/how-to/slicer.md">Tutorial</a>'
        )
        self.parent.acknowledgementText = (
            "After the paper Medical Vision Generalist: Unifying Medical Imaging Tasks in Context, "
            "S. Ren, X. Huang, X. Li, J. Xiao, J. Mei, Z. Wang, A. Yuille, Y. Zhou, arXiv:2406.05565."
        )
        slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData():
    """Offer the made-up patients in the module Sample Data."""
    from MVGLib import sample_data

    sample_data.register(os.path.join(os.path.dirname(__file__), "Resources", "Icons"))


class MVGTest(ScriptedLoadableModuleTest):
    """The module's self-test: made-up patients, and the worker if its packages are installed."""

    def setUp(self):
        slicer.mrmlScene.Clear(0)

    def runTest(self):
        for name in ("test_panelIsComplete", "test_referenceIsRemembered", "test_oneSliceGivesTheVolume"):
            self.setUp()
            getattr(self, name)()

    def test_panelIsComplete(self):
        """The panel opens, and says what is missing before it can run."""
        import MVGLib.sample_data as sample_data

        widget = slicer.util.getModuleWidget("MVG")
        sample_data.addPatient(0, [18])
        widget.enter()
        widget.update()
        self.assertFalse(widget.ui.runButton.property("enabled"), "nothing can run without a reference")
        self.delayDisplay("The panel is complete.")

    def test_referenceIsRemembered(self):
        """A labelled slice becomes a reference of the scene."""
        import MVGLib.sample_data as sample_data
        from MVGLib.geometry import SlicePosition

        logic = MVGLogic(slicer.mrmlScene)
        volume, labels = sample_data.addPatient(0, [18])
        segmentIds = list(labels.GetSegmentation().GetSegmentIDs())
        entry = logic.references.addSlice(volume, labels, segmentIds, SlicePosition(2, 18))
        self.assertEqual(logic.references.thumbnail(entry.id, 64).shape, (64, 64, 3))
        self.assertEqual([one.id for one in MVGLogic(slicer.mrmlScene).references.entries], [entry.id])
        logic.cleanup()
        self.delayDisplay("The reference is remembered.")

    def test_oneSliceGivesTheVolume(self):
        """One labelled slice, the others by the worker."""
        import MVGLib.sample_data as sample_data
        from MVGLib import install
        from MVGLib.geometry import SlicePosition

        if install.missingRequirements():
            self.delayDisplay("Skipped: press Install packages in the module first.")
            return
        volume, labels = sample_data.addPatient(0, [18])
        truth = sample_data.phantom(0).masks["liver"]
        with install.localWorker() as worker:
            logic = MVGLogic(slicer.mrmlScene, worker.waitUntilReady())
            segmentIds = list(labels.GetSegmentation().GetSegmentIDs())
            logic.references.addSlice(volume, labels, segmentIds, SlicePosition(2, 18))
            result = logic.process(volume, preset="fast", sliceRange=(14, 22))
        names = [result.segmentationNode.GetSegmentation().GetSegment(one).GetName() for one in result.segmentIds]
        liver = result.segmentIds[names.index("liver")]
        found = slicer.util.arrayFromSegmentBinaryLabelmap(result.segmentationNode, liver, volume).transpose(2, 1, 0)
        found, truth = found[..., 14:23] > 0, truth[..., 14:23]
        dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
        self.assertGreater(dice, 0.85)
        logic.cleanup()
        self.delayDisplay(f"Liver: Dice {dice:.3f}.")
