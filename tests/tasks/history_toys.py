"""Two users' histories, and the items in them."""

from __future__ import annotations

import numpy as np

from recft.data.store import Records

ITEMS = ["red chair", "黑色 打印机 墨盒", "ＵＳＢ cable 🎒", "oak desk", "oak desk"]
RECORDS = Records(
    keys=["u0", "u1"],
    queries=None,
    users=np.array([0, 1], np.int32),
    starts=np.array([0, 5]),
    cuts=np.array([4, 5]),
    times=np.array([9, 9]),
    offsets=np.array([0, 2, 3]),
    items=np.array([4, 1, 0], np.int32),
    grades=np.array([1, 0, 1], np.float32),
    log_items=np.array([0, 1, 0, 2, 4, 3], np.int32),
    log_times=np.arange(6),
    log_ratings=np.array([5, 2, 1, 4, 5, 3], np.float32),
)
