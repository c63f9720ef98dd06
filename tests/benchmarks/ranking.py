"""Full-catalogue evaluation from vectors, beside blocks of numpy's `argpartition` and ranx on the first 100.

    python tests/benchmarks/ranking.py --work /tmp/ranking          # 10,000 users x 100,000 items, about 5 minutes

Unit vectors of 64 numbers, float32; one to five relevant items a user, whose vector lies near them. recft computes all
ranking metrics that it has, at 10 and at 100, over exact places (ties at their expected value), and keeps the first 100
items for metrics of lists; the other side multiplies a block of users with the catalogue, takes the first 100 by
`argpartition`, sorts them and gives them to ranx as arrays, for those of these metrics that ranx has. `recft, the same
metrics` computes no others either. Both start from vectors and end with means, in turns in one process; what is
compiled is compiled before. Their metrics must agree, record by record, where no relevant item is tied.

Memory is the peak (VmHWM) of processes of their own that score 1,000, 10,000 and 50,000 users; growth is the time a
user as the catalogue, the users and the relevant items grow. Everything goes to WORK/ranking.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from _beside import Row, alternate, child, compared, machine, save, show, versions

from recft.data.store import Records
from recft.schema import EvalSettings
from recft.training.exam import Exam, model_system
from recft.training.scoring import Scored, score

TARGET = 2.0
DEPTH, BLOCK_USERS = 100, 128
SHARED = ("ndcg", "map", "mrr", "recall", "precision", "hr")
OTHERS = ("judged", "coverage", "diversity", "gini", "invalid", "novelty", "tail_count", "tail_share")
THEIRS = {"hr": "hit_rate"}
NAMES = tuple(f"{name}@{cutoff}" for name in (*SHARED, *OTHERS) for cutoff in (10, DEPTH))
AGREE = 1e-6


@dataclass(frozen=True)
class Shop:
    """Users (R, D) and items (N, D) as unit vectors; user r's items are `relevant[offsets[r]:offsets[r + 1]]`."""

    users: np.ndarray
    items: np.ndarray
    offsets: np.ndarray
    relevant: np.ndarray
    texts: list[str]


def main() -> None:
    """Measures, prints the table, writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("ranking"))
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", choices=["recft", "peer"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        shop = made(given.users, given.items, given.dimension)
        (ours if given.child == "recft" else theirs)(shop)
        print(json.dumps({}))
        return
    shop = made(given.users, given.items, given.dimension)
    rows, agreement = side_by_side(shop, given.rounds)
    memory = {
        side: {users: peak(side, users, given) for users in (1_000, 10_000, 50_000)} for side in ("recft", "peer")
    }
    rows += [memory_row(memory, given.items)]
    rows += growth(given)
    print(f"{machine()}, {versions('numpy', 'ranx', 'numba', 'torch')}")
    show(rows)
    print(f"metrics of both, without ties: furthest mean {agreement['furthest_mean']:.1e}, ", end="")
    print(f"{agreement['records']:,} records, {agreement['different']} differ: ", end="")
    print("the same" if agreement["furthest_mean"] <= AGREE else "DIFFERENT")
    save(
        given.work / "ranking.json",
        rows,
        versions=versions("numpy", "ranx", "numba", "torch"),
        agreement=agreement,
        memory=memory,
    )


def made(n_users: int, n_items: int, dimension: int, most_relevant: int = 5, seed: int = 0) -> Shop:
    """A shop of random unit vectors; a user's lies near those of one to `most_relevant` items."""
    draw = np.random.default_rng(seed)
    items = unit(draw.standard_normal((n_items, dimension), dtype=np.float32))
    sizes = draw.integers(1, most_relevant + 1, n_users)
    drawn = [draw.choice(n_items, size, replace=False, shuffle=False) for size in sizes]
    relevant, offsets = np.concatenate(drawn), np.concatenate([[0], np.cumsum(sizes)])
    users = np.add.reduceat(items[relevant], offsets[:-1]) / np.sqrt(sizes)[:, None].astype(np.float32)
    users = unit(users + 0.3 * draw.standard_normal(users.shape, dtype=np.float32))
    words = np.array([f"word{number}" for number in range(3000)] + [f"红色{chr(0x4E00 + n)}" for n in range(500)])
    texts = [" ".join(row) for row in words[draw.integers(0, len(words), (n_items, 6))].tolist()]
    return Shop(users, items, offsets.astype(np.int64), relevant.astype(np.int32), texts)


def unit(vectors: np.ndarray) -> np.ndarray:
    """The vectors at length 1."""
    found: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found


class Vectors:
    """A task whose texts are numbers, and an encoder that has their vectors."""

    output = "ranking"

    def __init__(self, shop: Shop) -> None:
        self.shop = shop

    def reads(self, config: Any) -> str:
        return "towers"

    def contexts(self, config: Any, records: Records, rows: np.ndarray, items: Any) -> np.ndarray:
        return np.asarray(self.shop.users[rows])

    def candidates(self, config: Any, items: Any) -> np.ndarray:
        return self.shop.items


def exam_of(shop: Shop, names: tuple[str, ...]) -> Exam:
    """The exam of all users on the whole catalogue."""
    n_users = len(shop.users)
    nothing: Any = None
    records = Records(
        keys=[str(user) for user in range(n_users)],
        queries=None,
        users=nothing,
        starts=nothing,
        cuts=nothing,
        times=nothing,
        offsets=shop.offsets,
        items=shop.relevant,
        grades=np.ones(len(shop.relevant), np.float32),
    )
    popularity = np.random.default_rng(1).zipf(1.5, len(shop.items)).clip(max=10_000)
    task: Any = Vectors(shop)
    config: Any = SimpleNamespace()
    return Exam(task, config, records, shop.texts, names, EvalSettings(), popularity=popularity)


def ours(shop: Shop, names: tuple[str, ...] = NAMES) -> Scored:
    """What recft finds."""
    exam = exam_of(shop, names)
    return score(exam, model_system(exam, lambda texts: np.asarray(texts)))


def theirs(shop: Shop) -> dict[str, np.ndarray]:
    """What blocks of argpartition and ranx find, by recft's names of the metrics, (R,) each."""
    import numba
    import ranx

    n_users = len(shop.users)
    run = np.empty((n_users, DEPTH, 2))
    by_dimension = np.ascontiguousarray(shop.items.T)
    for start in range(0, n_users, BLOCK_USERS):
        block = shop.users[start : start + BLOCK_USERS] @ by_dimension
        best = np.argpartition(block, -DEPTH, axis=1)[:, -DEPTH:]
        scores = np.take_along_axis(block, best, axis=1)
        order = np.argsort(-scores, axis=1)
        run[start : start + BLOCK_USERS, :, 0] = np.take_along_axis(best, order, axis=1)
        run[start : start + BLOCK_USERS, :, 1] = np.take_along_axis(scores, order, axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        qrels = numba.typed.List(
            [
                np.stack([own, np.ones(len(own))], axis=1)
                for own in np.split(shop.relevant.astype(np.float64), shop.offsets[1:-1])
            ]
        )
        names = {f"{THEIRS.get(name, name)}@{k}": f"{name}@{k}" for name in SHARED for k in (10, DEPTH)}
        found = ranx.evaluate(qrels, run, list(names), return_mean=False)
    return {ours: np.asarray(found[name]) for name, ours in names.items()}


def side_by_side(shop: Shop, rounds: int) -> tuple[list[Row], dict[str, Any]]:
    """The rows of the comparison, and whether both sides' metrics agree."""
    same = tuple(name for name in NAMES if name.partition("@")[0] in SHARED)
    small = made(200, 2_000, shop.users.shape[1])
    theirs(small)  # compiles
    ours(small)
    seconds = alternate(
        {
            "recft": lambda: clocked(lambda: ours(shop)),
            "recft, the same metrics": lambda: clocked(lambda: ours(shop, same)),
            "argpartition + ranx": lambda: clocked(lambda: theirs(shop)),
        },
        rounds,
    )
    size = f"{len(shop.users):,} users x {len(shop.items):,} items"
    peer, n = seconds["argpartition + ranx"], len(shop.users)
    return [
        compared(f"{size}, all metrics", "users/s", (n, n), (seconds["recft"], peer), TARGET),
        compared(f"{size}, the same metrics", "users/s", (n, n), (seconds["recft, the same metrics"], peer)),
    ], agreement_of(ours(shop), theirs(shop))


def clocked(work: Any) -> float:
    """The seconds of some work."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def agreement_of(mine: Scored, peer: dict[str, np.ndarray]) -> dict[str, Any]:
    """How far apart the metrics of both sides are where no relevant item is tied."""
    assert mine.ranks is not None
    alone = np.ones(len(mine.ranks), bool)
    alone[mine.ranks.records[mine.ranks.tied > 1]] = False
    off = {name: np.abs(mine.per_record[name] - found)[alone] for name, found in peer.items()}
    means = {name: abs(float(mine.per_record[name][alone].mean() - peer[name][alone].mean())) for name in peer}
    return {
        "records": int(alone.sum()),
        "different": int((np.stack(list(off.values())) > AGREE).any(axis=0).sum()),
        "furthest_mean": max(means.values()),
        "means": {name: [float(mine.per_record[name][alone].mean()), float(peer[name][alone].mean())] for name in peer},
    }


def peak(side: str, users: int, given: argparse.Namespace) -> int:
    """The peak memory of a process that scores so many users, in bytes."""
    options = ["--users", str(users), "--items", str(given.items), "--dimension", str(given.dimension)]
    return int(child(Path(__file__), side, options)["peak_bytes"])


def memory_row(memory: dict[str, dict[int, int]], n_items: int) -> Row:
    """The bytes that one user more costs, beside the score of every item for that user."""
    few, most = min(memory["recft"]), max(memory["recft"])
    each = {side: (found[most] - found[few]) / (most - few) for side, found in memory.items()}
    peaks = ", ".join(f"{users:,} users {bytes_ / 2**20:,.0f} MiB" for users, bytes_ in memory["recft"].items())
    note = f"peak of recft: {peaks}; a user's scores are {4 * n_items:,} bytes"
    return Row("memory of one user more", "bytes", each["recft"], each["peer"], note=note)


def growth(given: argparse.Namespace) -> list[Row]:
    """Microseconds a user as the catalogue, the users and the relevant items grow."""
    rows = []
    for n_items in (1_000, 10_000, 100_000, 1_000_000):
        n_users = max(1_000, min(20_000, 100_000_000 // n_items))
        shop = made(n_users, n_items, given.dimension)
        rows.append(a_user(f"{n_items:,} items", shop))
    rows += [
        a_user(f"{n_users:,} users x 20,000 items", made(n_users, 20_000, given.dimension))
        for n_users in (1_000, 10_000, 50_000)
    ]
    return rows + [
        a_user(f"1 to {most} relevant, 100,000 items", made(1_000, 100_000, given.dimension, most))
        for most in (1, 5, 50)
    ]


def a_user(workload: str, shop: Shop) -> Row:
    """The median microseconds of one user in three turns."""
    found = statistics.median(clocked(lambda: ours(shop)) for _ in range(3))
    return Row(workload, "us/user", found / len(shop.users) * 1e6)


if __name__ == "__main__":
    main()
