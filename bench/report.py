"""RESULTS.md and the plot, made from the raw figures and from story.md.

``report.py`` makes both again from the figures of the last run.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import matplotlib as mpl
from cases import (
    AIOKAFKA,
    CONFLUENT,
    FIRST_EVENT,
    FIRST_PAGE,
    LEAN,
    PROOF,
    RAW,
    TEN_MILLION,
    VERIFY,
    WORKER,
)
from matplotlib.figure import Figure

from replay_app.metrics import Stage

BENCH = Path(__file__).parent
STORY = BENCH / "story.md"
RAW_FIGURES, PLOT, RESULTS = "results/bench.json", "results/bench.svg", "RESULTS.md"
MAIN, LARGE, SHARDS = "600 B events", "20 kB events", "Shards over workers"
STAGES = get_args(Stage)
SMALL_FIGURE = 10
ALL_CORES = 0.9
"""A share of all cores that counts as all: the system and other programs use the rest."""
PLOTTED_RATE = 10_000
"""The bars of slower contenders would be too short to see."""

Run = dict[str, Any]
Measure = Callable[[Run], float]


def rate(run: Run) -> float:
    """Return events a second."""
    return float(run["events"] / run["seconds"])


def working_rate(run: Run) -> float:
    """Return events a second without the time of planning."""
    return float(run["events"] / (run["seconds"] - run.get("plan_seconds", 0)))


def megabytes(run: Run) -> float:
    """Return MB a second, of BSON."""
    return float(run["bytes"] / run["seconds"] / 1e6)


def own_cpu(run: Run) -> float:
    """Return the microseconds of CPU per event of the contender."""
    return float(1e6 * run["cpu_seconds"] / run["events"])


def broker_cpu(run: Run) -> float:
    """Return the microseconds of CPU per event of the broker."""
    return float(1e6 * run["broker_cpu_seconds"] / run["events"])


def store_cpu(run: Run) -> float:
    """Return the microseconds of CPU per event of the store."""
    return float(1e6 * run["store_cpu_seconds"] / run["events"])


def cores(run: Run) -> float:
    """Return how many cores the contender, the broker and the store kept busy."""
    parts = ("cpu_seconds", "broker_cpu_seconds", "store_cpu_seconds")
    return float(sum(run[part] for part in parts) / run["seconds"])


def store_cores(run: Run) -> float:
    """Return how many cores the store kept busy."""
    return float(run["store_cpu_seconds"] / run["seconds"])


class Results:
    """The raw figures, by group and label."""

    def __init__(self, figures: dict[str, Any]) -> None:
        self.about: dict[str, Any] = figures["about"]
        self.groups: dict[str, dict[str, Any]] = figures["groups"]
        self._runs: list[Run] = figures["runs"]

    def of(self, group: str, label: str) -> list[Run]:
        """Return a case's runs, in the order of the rounds."""
        found = [r for r in self._runs if (r["group"], r["label"]) == (group, label)]
        return sorted(found, key=lambda run: int(run["round"]))

    def median(self, group: str, label: str, measure: Measure) -> float:
        """Return the median of a case's rounds."""
        return statistics.median(map(measure, self.of(group, label)))

    def fastest(self, group: str, prefix: str) -> str | None:
        """Return the fastest case of those whose labels begin with the prefix."""
        labels = [x for x in self.groups[group]["labels"] if x.startswith(prefix)]
        return max(labels, key=lambda x: self.median(group, x, rate), default=None)

    def ratios(self, group: str, label: str, peer: str, measure: Measure = rate) -> list[float]:
        """Return a case's figure divided by its peer's, for each round that has both."""
        peers = {run["round"]: measure(run) for run in self.of(group, peer)}
        runs = [run for run in self.of(group, label) if run["round"] in peers]
        return [measure(run) / peers[run["round"]] for run in runs]


def write(figures: dict[str, Any], folder: Path) -> None:
    """Write the raw figures, the plot and RESULTS.md."""
    raw = folder / RAW_FIGURES
    raw.parent.mkdir(parents=True, exist_ok=True)
    raw.write_text(json.dumps(figures, indent=1) + "\n")
    results = Results(figures)
    _plot(results, folder / PLOT)
    parts = [*_head(results), *_tables(results), STORY.read_text()]
    (folder / RESULTS).write_text("\n\n".join(parts))


def _head(results: Results) -> Iterable[str]:
    about = results.about
    yield "# Results"
    yield (
        "Made by `make bench`: figures, tables and plot from one run, [the story](#the-story) by "
        "hand. Compare within this run only; another machine, or another hour, gives other figures."
    )
    yield (
        f"{about['date']}, {about['cores']} cores ({about['cpu']}), "
        f"{about['memory_bytes'] / 2**30:.0f} GiB, Python {about['python']}; broker Apache Kafka, "
        f"store {about['store']}, both on the same cores. {about['seconds'] / 60:.0f} minutes; "
        f"load average at the start {about['load']:.1f}."
    )
    yield f"![Events a second and CPU per event]({PLOT})"
    yield (
        "Each run is a new process on new topics, the contenders take turns, and after "
        "each run a `read_committed` consumer counts the records. A script is measured from "
        "connecting to the last ack, without its imports; this worker from the command over HTTP "
        "to `completed` on `replay.status`, planning included, on workers that are up and ready. "
        "Figures are min / **median** / max of the rounds; ratios are taken within a round and "
        "to the fastest of the peer's codecs. CPU is user and system time, in microseconds per "
        "event. MB are of stored BSON. Peak RSS is the largest of the contender's processes, "
        "imports included."
    )
    if goals := list(_goals(results)):
        yield "## Goals"
        yield _table(["goal", "reached", ""], goals)


def _tables(results: Results) -> Iterable[str]:
    cpu_of_each = (own_cpu, broker_cpu, store_cpu)
    for title, group in results.groups.items():
        peers = [peer for peer in group["peers"] if results.fastest(title, peer)]
        columns = ["", "events/s", "MB/s", "CPU own", "broker", "store", "cores", "peak RSS"]
        rows = []
        for label in group["labels"]:
            runs = results.of(title, label)
            row = [
                label,
                _spread([rate(run) for run in runs], ",.0f"),
                f"{results.median(title, label, megabytes):,.1f}",
                *(f"{results.median(title, label, cpu):,.2f}" for cpu in cpu_of_each),
                f"{results.median(title, label, cores):.2f}",
                f"{max(run['peak_rss_bytes'] for run in runs) / 1e6:,.0f} MB",
            ]
            for peer in peers:
                fastest = results.fastest(title, peer)
                row.append(_spread(results.ratios(title, label, fastest or peer), ".2f"))
            rows.append(row)
        yield f"## {title}"
        yield group["note"]
        yield _table([*columns, *(f"x {peer}" for peer in peers)], rows)
        if stages := list(_stages(results, title)):
            yield "Milliseconds of planning, and of waiting for each stage of the shards' work."
            yield _table(["", "plan", *STAGES, "all"], stages)
        for name, what in EXTRAS.items():
            lines = [
                f"- {label}: {what} {_spread([1000 * run[name] for run in runs], ',.0f')} ms"
                for label in group["labels"]
                if (runs := [run for run in results.of(title, label) if name in run])
            ]
            if lines:
                yield "\n".join(lines)


EXTRAS = {
    "first_page_seconds": "the first page after",
    "first_event_seconds": "the first event after",
    "replay_seconds": "one replay, median of the run,",
}


def _stages(results: Results, title: str) -> Iterable[list[str]]:
    """Yield the stages of this worker's single replays, in milliseconds."""
    for label in results.groups[title]["labels"]:
        runs = [run for run in results.of(title, label) if "plan_seconds" in run]
        if runs:
            waits = [[run["waited_seconds"][stage] for run in runs] for stage in STAGES]
            figures = [[run["plan_seconds"] for run in runs], *waits, [r["seconds"] for r in runs]]
            yield [label, *(f"{1000 * statistics.median(found):,.0f}" for found in figures)]


def _goals(results: Results) -> Iterable[list[str]]:
    """Yield the goals of the groups that ran, with the figures that were reached."""
    for title, goals in (
        (MAIN, _main_goals),
        (LARGE, _large_goals),
        (SHARDS, _shards_goal),
        (PROOF, _proof_goal),
    ):
        if title in results.groups:
            yield from goals(results)
    yield from _first_events(results)
    peaks = {
        title: max(
            (
                run["peak_rss_bytes"] / 1e6
                for label in group["labels"]
                if label.startswith(WORKER)
                for run in results.of(title, label)
            ),
            default=0.0,
        )
        for title, group in results.groups.items()
    }
    for title, most in ((MAIN, 160), (LARGE, 300)):
        if title in peaks:
            yield _goal(f"peak RSS in MB, {title}", [peaks[title]], most, at_most=True)
    if any(peaks.values()):
        largest = max(peaks, key=lambda title: peaks[title])
        yield [f"the same of all runs ({largest})", f"{peaks[largest]:.0f}", ""]


def _main_goals(results: Results) -> Iterable[list[str]]:
    """Yield the goals of both encoders."""
    confluent = results.fastest(MAIN, CONFLUENT) or ""
    for encoder, speed, cpu in (("native", 2.8, 0.2), ("python", 0.9, 1.2)):
        worker = results.fastest(MAIN, f"{WORKER}, {encoder}, codec ")
        if worker is None:
            continue
        yield _goal(
            f"{worker}: events/s of {confluent}", results.ratios(MAIN, worker, confluent), speed
        )
        ratios = results.ratios(MAIN, worker, confluent, own_cpu)
        yield _goal(f"{worker}: CPU per event of {confluent}", ratios, cpu, at_most=True)
    worker = results.fastest(MAIN, f"{WORKER}, native, codec ")
    if worker is None:
        return
    yield _goal(
        f"events/s of the loop with one header ({LEAN})", results.ratios(MAIN, worker, LEAN), 2.2
    )
    labels = results.groups[MAIN]["labels"]
    default = next((one for one in labels if one.endswith("native, codec lz4")), worker)
    yield _goal(f"default settings: events/s of the {RAW}", results.ratios(MAIN, default, RAW), 0.9)
    alone = results.ratios(MAIN, worker, RAW, working_rate)
    yield ["the same without the time of planning", _spread(alone, ".2f"), ""]
    yield _goal(f"events/s of {AIOKAFKA}", results.ratios(MAIN, worker, AIOKAFKA), 4.0)
    yield _goal(
        "share of the time that is none of planning and of waiting for a page, its encoding, or "
        "the acks of the one before: transactions, checkpoints, progress, tokens, the command, and "
        "the count at the end",
        [_rest(run) for run in results.of(MAIN, worker)],
        0.1,
        at_most=True,
    )


def _large_goals(results: Results) -> Iterable[list[str]]:
    worker = results.fastest(LARGE, f"{WORKER}, native")
    if worker is None:
        return
    limits = (RAW, results.fastest(LARGE, "librdkafka") or "")
    slower = min(limits, key=lambda label: results.median(LARGE, label, rate))
    ratios = results.ratios(LARGE, worker, slower)
    yield _goal(f"20 kB: MB/s of the smaller limit ({slower})", ratios, 0.7)
    loop = results.fastest(LARGE, CONFLUENT) or ""
    yield _goal(f"20 kB: MB/s of {loop}", results.ratios(LARGE, worker, loop), 1.0)


def _shards_goal(results: Results) -> Iterable[list[str]]:
    two = f"{WORKER}, 2 shards on 2"
    busy, store = (results.median(SHARDS, two, measure) for measure in (cores, store_cores))
    count = results.about["cores"]
    # A query runs on one core of the store, and the workers wait for the query.
    limit = "cores" if busy >= ALL_CORES * count else "store" if store >= ALL_CORES else ""
    yield [
        "2 shards on 2 workers: limited only by cores or store",
        f"{busy:.2f} of {count} cores busy, {store:.2f} of them by the store",
        f"met: {limit}" if limit else "**not shown**",
    ]


def _proof_goal(results: Results) -> Iterable[list[str]]:
    if ratios := results.ratios(PROOF, VERIFY, WORKER):
        yield _goal(f"events/s of the replay: {VERIFY}", ratios, 0.5)


def _first_events(results: Results) -> Iterable[list[str]]:
    """Yield how long after the store's own first page the first event comes, for each history."""
    for title in (FIRST_EVENT, TEN_MILLION):
        for label in results.groups.get(title, {"labels": ()})["labels"]:
            what = label.removeprefix(f"{WORKER}, ")
            if what != label:
                store = [
                    run["first_page_seconds"] for run in results.of(title, f"{FIRST_PAGE}, {what}")
                ]
                own = [run["first_event_seconds"] for run in results.of(title, label)]
                if not store:  # a quick run leaves cases out
                    continue
                wanted = 0.6 if what.startswith("aggregate") else 0.4
                late = [one - page for one, page in zip(own, store, strict=True)]
                name = f"first event, {what}: seconds after {FIRST_PAGE}"
                yield _goal(name, late, wanted, at_most=True)


def _rest(run: Run) -> float:
    """Return the share of the time outside planning, reading, encoding and sending."""
    waited = run["waited_seconds"]
    main = run["plan_seconds"] + sum(waited[stage] for stage in STAGES if stage != "commit")
    return float(1 - main / run["seconds"])


def _goal(
    what: str, reached: Sequence[float], wanted: float, *, at_most: bool = False
) -> list[str]:
    figure = statistics.median(reached)
    is_met = figure <= wanted if at_most else figure >= wanted
    bound = "at most" if at_most else "at least"
    form = ".2f" if wanted < SMALL_FIGURE else ".0f"
    return [
        f"{what}: {bound} {wanted:g}",
        _spread(reached, form),
        "met" if is_met else "**missed**",
    ]


def _spread(figures: Sequence[float], form: str) -> str:
    low, high = min(figures), max(figures)
    return f"{low:{form}} / **{statistics.median(figures):{form}}** / {high:{form}}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plot(results: Results, path: Path) -> None:
    mpl.rcParams |= {"svg.hashsalt": "bench", "svg.fonttype": "none", "font.size": 8}
    group = next(iter(results.groups))
    labels = [
        x for x in results.groups[group]["labels"] if results.median(group, x, rate) > PLOTTED_RATE
    ]
    labels.sort(key=lambda label: results.median(group, label, rate))
    figure = Figure(figsize=(11, 0.27 * len(labels) + 1), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    measures = ((rate, f"events/s, {group}"), (own_cpu, "CPU of the contender, us per event"))
    for panel, (measure, title) in zip(panels, measures, strict=True):
        middles = [results.median(group, label, measure) for label in labels]
        runs = [[measure(run) for run in results.of(group, label)] for label in labels]
        spread = [
            [middle - min(found) for middle, found in zip(middles, runs, strict=True)],
            [max(found) - middle for middle, found in zip(middles, runs, strict=True)],
        ]
        colors = ["tab:orange" if x.startswith(WORKER) else "tab:gray" for x in labels]
        panel.barh(labels, middles, xerr=spread, color=colors, ecolor="black", capsize=2)
        panel.set_title(title)
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.grid(axis="x", alpha=0.3)
        panel.set_axisbelow(True)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    write(json.loads((BENCH / RAW_FIGURES).read_text()), BENCH)
    sys.exit(0)
