"""The part of the panel that says where it computes: installs packages, starts and ends the worker, or finds a server.

Nothing here waits: `poll` is called from the module's timer.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import slicer.util

from . import install
from .client import BackgroundCall, Client
from .parameters import Computer
from .worker import DEAD, HUNG, READY, STARTING, Worker, WorkerError

if TYPE_CHECKING:
    from .widget import MVGWidget

UPLOAD_QUESTION = """The image and its references will be sent to

    {url}

Images can identify a person. Send them only if you are allowed to. Names, dates and other attributes are not \
sent.{notes}

Send them to this server until Slicer is closed?"""
PLAIN_NOTE = """

The connection is not encrypted (http): whoever is on the way can read the images and the key. Use an address that \
begins with https."""
TUNNEL_NOTE = """

The address is one of this computer; but if a tunnel leads from it to another one, the images go there."""


class ServerPanel:
    """Install button, local or remote, connection.

    Args:
        owner: the module's widget.

    Attributes:
        client: talks to what computes; None while nothing does.
        error: why nothing computes though it should; empty otherwise.
    """

    def __init__(self, owner: MVGWidget) -> None:
        self._owner, self._ui = owner, owner.ui
        self.client: Client | None = None
        self.error = ""
        self._worker: Worker | None = None
        self._waiting: list[Callable[[], None]] = []
        self._question: BackgroundCall | None = None
        self._asked: Client | None = None
        self._agreed: set[str] = set()
        self._key = os.environ.get("MVG_API_KEY", "")
        self._ui.serverKeyLineEdit.setText(self._key)
        self._ui.serverKeyLineEdit.textChanged.connect(self.setKey)
        owner.connect(self._ui.installButton.clicked, self.install, "The packages could not be installed.")
        owner.connect(self._ui.testConnectionButton.clicked, self.test, "No connection.")
        owner.connect(self._ui.restartWorkerButton.clicked, self.restart, "It could not be started.")

    # --- what the user does ---

    def setKey(self, key: str) -> None:
        """Take the server's API key; it stays in memory only."""
        if key.strip() != self._key:
            self._key = key.strip()
            self.disconnect()

    def install(self) -> None:
        """Install what the worker needs, after a question."""
        if install.ensureRequirements(install.requirementsOf(self._backend)):
            self._owner.log("The packages are installed.")
        self.update()

    def test(self) -> None:
        """Connect, or connect again, and say what is there; sends no image."""
        self.disconnect(keepWorker=True)
        self._connect()
        if self._question is not None:
            self._tell("Connecting...")

    def restart(self) -> None:
        """End the worker if it is ours, and connect again."""
        self._owner.endRun()
        self.disconnect()
        self._connect()

    # --- for the rest of the panel ---

    def whenReady(self, then: Callable[[], None]) -> bool:
        """Do something once there is a connection, which is made if need be.

        Returns:
            False if the user does not want images to be sent.

        Raises:
            RuntimeError, ValueError: packages, files or an address are missing; says what to do.
        """
        if not self.mayUpload():
            return False
        if self.isReady:
            then()
            return True
        self._waiting.append(then)
        try:
            self._connect()
        except Exception:
            self._waiting.clear()
            raise
        return True

    def startEarly(self) -> None:
        """Start the worker of this computer, if it can be: the first preview then need not wait for it."""
        if self._isLocal and self.client is None and not self.error:
            with contextlib.suppress(install.InstallError, WorkerError):  # told when somebody wants to compute
                self._connect()

    @property
    def hasAgreed(self) -> bool:
        """Whether images may be sent to what is connected, without asking."""
        return self._isLocal or (self.client is not None and self.client.url in self._agreed)

    @property
    def isReady(self) -> bool:
        """Whether a run can be started at once."""
        return self.client is not None and self._question is None and not self.error

    @property
    def isWaiting(self) -> bool:
        """Whether something waits for the connection."""
        return bool(self._waiting)

    @property
    def isConnecting(self) -> bool:
        """Whether a worker starts, or a question is under way."""
        return self._question is not None or (self._worker is not None and self._worker.state == STARTING)

    def forget(self) -> None:
        """Drop what waits for the connection."""
        self._waiting.clear()

    def poll(self) -> None:
        """Look at the worker and at the questions that are under way."""
        if self._worker is not None:
            self._pollWorker(self._worker)
        if self._question is not None and self._question.poll():
            question, self._question = self._question, None
            try:
                self._greet(*question.result())
            except Exception as error:
                self._lost(str(error))

    def disconnect(self, keepWorker: bool = False) -> None:
        """Forget the connection; the worker is ended, and what waits for it dropped, unless it is to be kept."""
        if not keepWorker:
            self._waiting.clear()
        self.client = self._question = self._asked = None
        self.error = ""
        self._owner.logic.client = None
        if self._worker is not None and not keepWorker:
            self._worker.stop(0.5)
            self._worker = None
        self._tell("Not connected yet.")

    def update(self) -> None:
        """Show what belongs to the chosen computer, and whether packages are missing."""
        isLocal = self._isLocal
        missing = install.missingRequirements(install.requirementsOf(self._backend)) if isLocal else []
        self._ui.setupFrame.setVisible(bool(missing))
        if missing:
            self._ui.setupLabel.setText("To compute on this machine, Slicer needs these Python packages: "
                                        f"{', '.join(missing)} (about 60 MB). Nothing that Slicer brings is replaced.")
        for widget in (self._ui.serverUrlLabel, self._ui.serverUrlLineEdit, self._ui.serverKeyLabel,
                       self._ui.serverKeyLineEdit):
            widget.setVisible(not isLocal)
        self._ui.restartWorkerButton.setVisible(isLocal)

    # --- parts ---

    @property
    def _isLocal(self) -> bool:
        return self._owner.parameters.computer != Computer.remote

    @property
    def _backend(self) -> str:
        """What the worker on this computer computes with."""
        return "torch" if self._owner.parameters.computer == Computer.localTorch else "onnx"

    def mayUpload(self) -> bool:
        """Ask before the first image goes to a server, wherever its address seems to lead."""
        if self._isLocal:
            return True
        client = self._remoteClient()
        if client.url in self._agreed:
            return True
        notes = TUNNEL_NOTE if client.isLocal else PLAIN_NOTE if client.url.lower().startswith("http:") else ""
        question = UPLOAD_QUESTION.format(url=client.url, notes=notes)
        if not slicer.util.confirmYesNoDisplay(question, "MVG - Send images?"):
            return False
        self._agreed.add(client.url)
        self._owner.log(f"Images may be sent to {client.url} until Slicer is closed.")
        return True

    def _remoteClient(self) -> Client:
        url = self._owner.parameters.serverUrl.strip()
        if not url:
            raise ValueError("Enter the URL of the server under Where it computes, such as https://host:8642.")
        return Client(url, self._key)

    def _connect(self) -> None:
        if self._question is not None or (self._worker is not None and self._worker.state == STARTING):
            return
        self.error = ""
        if not self._isLocal:
            self._ask(self._remoteClient())
            return
        if self._worker is None or self._worker.poll() in (DEAD, HUNG):
            self._startWorker()
        elif self._worker.client is not None:
            self._ask(self._worker.client)

    def _startWorker(self) -> None:
        if self._backend == "torch":
            install.checkTorch()
        missing = install.missingRequirements(install.requirementsOf(self._backend))
        if missing:
            raise install.InstallError(f"{', '.join(missing)} not installed in Slicer: press Install packages at the "
                                       "top of this panel, or choose a server under Where it computes.")
        core = install.coreFolder()
        problems = install.missingFiles(core, self._backend)
        if problems:
            raise install.InstallError(" ".join(problems))
        if self._worker is not None:
            self._worker.kill()
        self._worker = install.localWorker(core, self._backend)
        self._worker.start()
        self._owner.log("The worker process is starting.")
        self._tell("Starting...")

    def _pollWorker(self, worker: Worker) -> None:
        before, state = worker.state, worker.poll()
        if state == READY and worker.client is not None:
            if self._asked is not worker.client:
                self._ask(worker.client)
            elif self.error and before == HUNG:
                self.error = ""
                self._ask(worker.client)
                self._tell("It answers again.", log=True)
        elif state in (HUNG, DEAD) and not self.error:
            self._lost(worker.error, worker.log(5))

    def _ask(self, client: Client) -> None:
        """Ask who answers, on another thread."""
        self._asked = client
        self._question = BackgroundCall(lambda *_: (client, client.health(), client.capabilities()))

    def _greet(self, client: Client, health: dict[str, Any], capabilities: dict[str, Any]) -> None:
        """There is a connection: compare versions, say what is there, and go on with what waited for it."""
        self.client, self.error = client, ""
        self._owner.logic.client = client
        where = "This computer" if self._isLocal else client.url
        weights = capabilities.get("weights") or {}
        self._tell(f"{where}: MVG {health.get('version')}, {capabilities.get('backend')} on "
                   f"{capabilities.get('device')}, weights {weights.get('name', '?')} "
                   f"({str(weights.get('sha256', ''))[:12]}).", log=True)
        for problem in install.versionProblems(install.coreFolder(), health, capabilities):
            self._owner.warn(f"{problem} Results may differ: install the same version on both sides.")
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            self._owner.guarded(then, "It could not be started.")
        if self._isLocal and not waiting:
            self._owner.run.warmUp()

    def _lost(self, reason: str, details: str = "") -> None:
        """Say why there is no connection; what is in the scene stays."""
        self._waiting.clear()
        self.client, self.error = None, reason or "It ended unexpectedly."
        self._owner.logic.client = None
        remedy = "Press Restart." if self._isLocal else "Then press Test connection."
        self._tell(f"{_sentence(self.error)} {remedy}", log=True)
        if details:
            self._owner.log(details)
        self._ui.serverCollapsibleButton.setProperty("collapsed", False)
        kept = " Slices that came in before are kept." if self._owner.run.isBusy else ""
        self._owner.warn(f"{_sentence(self.error)} {remedy}{kept}")

    def _tell(self, text: str, log: bool = False) -> None:
        self._ui.connectionLabel.setText(text)
        if log:
            self._owner.log(text)


def _sentence(text: str) -> str:
    text = text.strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."

