"""What a run tells while it goes on: metrics.jsonl, TensorBoard, and the listener."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from recft.run import Listener, RunFolder
from recft.training import checkpoint, memory

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["Track"]


class Track:
    """Sums of the steps since the last line, and where lines go."""

    def __init__(self, folder: RunFolder | None, listen: Listener, total_steps: int) -> None:
        self.folder = folder
        self.listen = listen
        self.total_steps = total_steps
        self._board: SummaryWriter | None = None
        self._clear()

    def _clear(self) -> None:
        self.losses: list[float] = []
        self.examples = self.tokens = 0
        self.seconds = self.rate = 0.0

    def add(self, loss: float, n_examples: int, n_tokens: int, seconds: float, rate: float) -> None:
        """One step's figures."""
        self.losses.append(loss)
        self.examples += n_examples
        self.tokens += n_tokens
        self.seconds += seconds
        self.rate = rate

    def log(self, step: int, epoch: float, device: torch.device) -> None:
        """One line for the steps since the last."""
        per_step = self.seconds / len(self.losses)
        line = {
            "step": step,
            "epoch": round(epoch, 4),
            "loss": sum(self.losses) / len(self.losses),
            "learning_rate": self.rate,
            "examples_per_second": round(self.examples / self.seconds, 2),
            "tokens_per_second": round(self.tokens / self.seconds, 1),
            "memory_bytes": memory.peak_bytes(device),
        }
        self._write(line)
        left = (self.total_steps - step) * per_step
        self.listen("step", {**line, "total_steps": self.total_steps, "seconds_left": left})
        self._clear()

    def evaluated(self, step: int, metric: str, value: float, best: bool) -> None:
        """One line for an evaluation."""
        self._write({"step": step, "metric": metric, "value": value, "best": best})
        self.listen("eval", {"step": step, "metric": metric, "value": value, "best": best})

    def _write(self, line: dict[str, Any]) -> None:
        if self.folder is None:
            return
        with self.folder.metrics.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        self._to_board(line)

    def _to_board(self, line: dict[str, Any]) -> None:
        if self.folder is None:
            return
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder.root))
        if "metric" in line:
            self._board.add_scalar(f"valid/{line['metric']}", line["value"], line["step"])
            return
        for name in ("loss", "learning_rate", "examples_per_second", "tokens_per_second"):
            self._board.add_scalar(f"train/{name}", line[name], line["step"])

    def cut_back(self, step: int) -> None:
        """Forgets all lines after `step`; TensorBoard's file is written again from those that stay."""
        if self.folder is None:
            return
        for old in self.folder.root.glob("events.out.tfevents*"):
            old.unlink()
        for line in checkpoint.cut_back(self.folder.metrics, step):
            self._to_board(line)

    def close(self) -> None:
        """Flushes TensorBoard's file."""
        if self._board is not None:
            self._board.close()
