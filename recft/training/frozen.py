"""Whether a job computes the frozen bottom of its model once a text, and where that is kept."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from recft.models.bottom import Bottom
from recft.models.hidden_store import HiddenStore
from recft.training.loop import Job, total_steps
from recft.training.mixing import Part

__all__ = ["frozen"]

EXAMPLES = 32
"""Of each task, drawn twice to see whether its texts come again."""

LEAST_AGAIN = 0.5
"""Share of texts that must."""

LEAST_SAVED = 0.15
"""Of the work of all blocks, forward and back. Measured, so much is a tenth of the time: there is other work, and
storing and reading take some."""


@contextlib.contextmanager
def frozen(job: Job, n_blocks: int, folder: Path) -> Iterator[Job]:
    """Within it the job with its lowest blocks computed once a text, or the job itself where that does not pay.

    Args:
        job: one that has not begun.
        n_blocks: how many blocks lie below all that it trains.
        folder: where their outputs are kept; removed once the job is done, and kept where it has to be resumed.
    """
    with contextlib.ExitStack() as stack:
        if _pays(job, n_blocks):
            most_bytes = int(job.settings.frozen_cache_gb * 1e9)
            store = stack.enter_context(contextlib.closing(HiddenStore(folder, most_bytes, job.listen)))
            model = job.tuned.model
            what = f"{job.fingerprint} {model.base.dtype} {n_blocks}"
            job = dataclasses.replace(job, bottom=Bottom.of(model, n_blocks, store, what))
        yield job
    shutil.rmtree(folder, ignore_errors=True)


def _pays(job: Job, n_blocks: int) -> bool:
    """Whether texts are seen again; a function of the recipe and the data: a resumed run must answer alike."""
    if not n_blocks or not job.settings.frozen_cache_gb or job.accelerator.num_processes > 1:
        return False
    steps = total_steps(job.settings, [part.n_examples for part in job.parts])
    n_layers = job.tuned.model.base.config.get_text_config().num_hidden_layers
    # The first epoch stores; of a later step the lower blocks' way forward is saved, they have none back.
    saved = max(0.0, 1 - job.steps_per_epoch / steps) * n_blocks / (2 * n_layers - n_blocks)
    return saved >= LEAST_SAVED and all(_repeats(part, job.seed) for part in job.parts)


def _repeats(part: Part, seed: int) -> bool:
    """Whether a task's examples are the same texts every time, at least for the most part."""
    rows = np.arange(min(EXAMPLES, part.n_examples))
    first, second = (set(part.batch(rows.copy(), np.random.default_rng([seed, 4, turn])).texts) for turn in (0, 1))
    return len(first & second) >= LEAST_AGAIN * len(second)
