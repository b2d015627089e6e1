"""What only the application can show: the real panel, views, parameter node and Segment Editor.

Run by `ctest` in a build of the extension, or in Slicer: Extension Wizard, select the module, Run tests.
"""

import unittest

import slicer
import slicer.util


class MVGModuleTest(unittest.TestCase):
    """Tests of the panel in the application."""

    def setUp(self):
        import MVGLib.sample_data as sample_data

        slicer.mrmlScene.Clear(0)
        slicer.util.selectModule("MVG")
        self.widget = slicer.util.getModuleWidget("MVG")
        self.volume, self.labels = sample_data.addPatient(0, [18])
        slicer.util.setSliceViewerLayers(background=self.volume, fit=True)
        self.parameters = self.widget.parameters

    def tearDown(self):
        self.widget.endRun()
        slicer.mrmlScene.Clear(0)

    def showSlice(self, number):
        """Let the red view show an axial slice."""
        self.widget.logic.jumpTo(self.widget.sliceNode(), self.volume, 2, number)

    def addReference(self):
        self.parameters.queryVolume, self.parameters.labelSegmentation = self.volume, self.labels
        self.showSlice(18)
        self.widget.references.addSlice()
        slicer.app.processEvents()

    def test_every_widget_follows_its_parameter_and_back(self):
        from MVGLib.parameters import Plane, Preset, Task

        self.parameters.task = Task.denoising
        self.assertEqual(self.widget.ui.taskComboBox.property("currentText"), Task.denoising.label())
        self.widget.ui.presetComboBox.setCurrentIndex(list(Preset).index(Preset.balanced))
        self.assertEqual(self.parameters.preset, Preset.balanced)
        self.parameters.plane = Plane.coronal
        self.assertEqual(self.widget.ui.planeComboBox.property("currentText"), Plane.coronal.label())
        self.widget.ui.allSlicesCheckBox.setChecked(False)
        self.assertFalse(self.parameters.allSlices)
        self.parameters.queryVolume = self.volume
        self.assertEqual(self.widget.ui.queryVolumeSelector.currentNode(), self.volume)

    def test_a_slice_of_the_view_becomes_a_reference_with_a_thumbnail(self):
        self.addReference()
        self.assertEqual(len(self.widget.logic.references.entries), 1)
        self.assertEqual(self.widget.logic.references.entries[0].position.index, 18)
        self.assertFalse(self.widget.ui.referencesList.item(0).icon().isNull())

    def test_go_to_moves_the_view_back(self):
        self.addReference()
        self.showSlice(3)
        self.widget.references.goTo()
        self.assertEqual(self.widget.logic.sliceOfView(self.widget.sliceNode(), self.volume).index, 18)

    def test_a_closed_scene_leaves_nothing_behind(self):
        self.addReference()
        slicer.mrmlScene.Clear(0)
        slicer.app.processEvents()
        self.assertEqual(self.widget.logic.references.entries, [])
        self.assertFalse(self.widget.ui.runButton.property("enabled"))

    def test_key_of_a_server_is_not_in_the_scene(self):
        self.widget.ui.serverKeyLineEdit.setText("secret-key")
        self.assertNotIn("secret-key", self.sceneText())

    def test_a_run_through_the_panel(self):
        """Needs the packages; the panel must stay alive meanwhile."""
        import time

        from MVGLib import install

        if install.missingRequirements():
            self.skipTest("press Install packages first")
        self.addReference()
        self.parameters.allSlices = False
        self.parameters.firstSlice, self.parameters.lastSlice = 15, 21
        self.widget.ui.runButton.click()
        end, longest, last = time.monotonic() + 180, 0.0, time.monotonic()
        while self.widget.run.isBusy and time.monotonic() < end:
            slicer.app.processEvents()
            time.sleep(0.01)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        self.assertIsNotNone(self.widget.run.result, "no result")
        self.assertEqual(self.widget.run.result.slicesDone, [15, 16, 17, 19, 20, 21], "all but the labelled one")
        self.assertLess(longest, 1.0, "the application stood still")
        self.widget.run.undo()
        self.assertEqual(len(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")), 1)

    def sceneText(self):
        slicer.mrmlScene.SetSaveToXMLString(1)
        slicer.mrmlScene.Commit()
        text = slicer.mrmlScene.GetSceneXMLString()
        slicer.mrmlScene.SetSaveToXMLString(0)
        return text
