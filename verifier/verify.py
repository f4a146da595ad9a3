"""Derives every interval and every verdict of a run again, from its plan and its raw rounds and blocks alone.

    python verifier/verify.py results [reports/report.md]

It shares no code with Claimbench and follows docs/statistics.md, so that one mistake is not made twice. What it leaves
as it was written: fractions of ceilings, minutes that are lacking, doubts, which systems are recommended, and words.
"""

import json
import math
import re
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
from fitness import departs, is_unfit
from intervals import LOOKS, Found, at_look, bootstrap, bounds, combined, of_one, place, says, settled
from raw import computed, id_of, of_process, of_sample, seal, weight_of
from sentences import misquoted, unsaid

COMPILED = {"compile_model", "compile_layer", "compile_wrapped", "compiled_block", "compiled_step", "compiled_graphs"}
OF_START = {"load_s", "load_gb_s", "first_call_s", "compile_s_extra"}
CERTAIN = {"weights_bytes", "step_weights_bytes", "kv_cache_bytes", "recompiles", "graphs"}
CERTAIN |= {"kl_mean_nats", "top1_agreement", "compiled_regions", "fusions", "math_attention_share"}
NOT_HERE = "not runnable here"
NOTHING = Found(None)
ENDS = ("estimate", "low", "high")
Sat = namedtuple("Sat", "result path round weight passes")


def differing(name, own, was, keys=("verdict", *ENDS)):
    """A line for each of `keys` that is another than was written."""
    for key, one in zip(keys, own, strict=False):
        other = was[key]
        is_number = isinstance(one, float | int) and isinstance(other, float | int)
        if not (math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12) if is_number else one == other):
            yield f"{name}: {key} {other} was written, and {one} follows"


class Run:
    """A folder of results: its plan and verdicts, who sat in rounds and blocks, and what is wrong with its files."""

    def __init__(self, folder):
        self.folder, self.wrong = Path(folder), []
        self.verdicts = self.read("results/verdicts.json", "verdicts")
        digest = self.verdicts["made_of"]["plan"]
        self.plan = self.read(f"results/plan/{digest[:12]}.json")
        sealed = {name: value for name, value in self.plan.items() if name != "commit"}
        self.wrong += ["the plan is not the one that was judged"] if seal(sealed) != digest else []
        listed = self.read(f"results/decided/{digest[:12]}.json", "rounds")["seals"] if self.plan["groups"] else {}
        self.cells, self.tolerance = self.plan["cells"], self.plan["params"]["measure"]["tolerance"]
        self.sat = {id: [sat for sat in self.blocks(id) if sat.result] for id in self.cells}
        for id, sat in self.arms(listed):
            if id in self.sat and sat.result["key"] == self.cells[id]["key"]:
                self.sat[id].append(sat)
        self.samples = {id: [self.numbers(id, sat.result) for sat in found] for id, found in self.sat.items()}

    def read(self, name, kind=None):
        try:
            found = json.loads((self.folder / name.removeprefix("results/")).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self.wrong.append(f"{name} cannot be read: {error}")
            if kind in ("round", "result"):
                return None
            sys.exit(self.wrong[-1])
        if kind and found["seal"] != seal(found[kind]):
            self.wrong.append(f"{name} was edited: its seal does not match what it holds")
        return found[kind] if kind else found

    def blocks(self, id):
        folder = f"results/measure/{id}/{seal(self.cells[id]['key'])[:12]}"
        paths = [f"{folder}/{number}.json" for number in range(self.cells[id]["blocks"])]
        return [Sat(self.read(path, "result"), path, None, None, []) for path in paths]

    def arms(self, listed):
        """Of the listed rounds. Who lacked memory in company, and sat alone as well, counts there."""
        rounds = {name: self.read(name, "round") for name in sorted(listed)}
        there = {f"results/rounds/{path.name}" for path in self.folder.glob("rounds/*.json")}
        self.wrong += [f"{name} was left out" for name in there - {*listed} if name < max(listed, default="")]
        self.wrong += [
            f"{name} is not as it decided" for name, one in rounds.items() if one and seal(one) != listed[name]
        ]
        arms = [
            (name, one, arm, id_of(arm["result"]["cell"])) for name, one in rounds.items() if one for arm in one["arms"]
        ]
        alone = {id for _, one, _, id in arms if not one["in_company"]}
        for name, one, arm, id in arms:
            if not (one["in_company"] and arm["result"]["outcome"] == "oom" and id in alone):
                passes = [turn["number"] for turn in arm["turns"] for _ in range(turn["samples"])]
                yield id, Sat(arm["result"], name, name, weight_of(one), passes)

    def numbers(self, id, result):
        """Of each generation, with those of its process; none where it did not end well."""
        shared = of_process(result) if result["outcome"] == "ok" else {}
        seats = sorted(self.sat.get(self.cells[id]["reference"], []), key=lambda sat: sat.result["outcome"] != "ok")
        ours, theirs = (
            result["tokens"],
            seats[0].result["tokens"] if seats and seats[0].result["outcome"] == "ok" else [],
        )
        if shared and ours and theirs:
            pairs = enumerate(zip(ours, theirs, strict=False))
            equal = next((n for n, (one, other) in pairs if one != other), min(len(ours), len(theirs)))
            shared["token_agreement"] = equal / max(len(ours), len(theirs))
        samples = result["samples"] if shared else []
        return [shared | of_sample(result["cell"], sample, result["prompt_tokens"] or 0) for sample in samples]

    def by_block(self, id, metric, only_alone=False):
        """Numbers by file, of a round's two processes together; of a start, of blocks alone, where there are any."""
        pairs = list(zip(self.sat[id], self.samples[id], strict=True))
        only_alone |= metric in OF_START and any(sat.round is None for sat in self.sat[id])
        pairs = [(sat, samples) for sat, samples in pairs if not (only_alone and sat.round)]
        files = {sat.path: [] for sat, _ in pairs}
        for sat, samples in pairs:
            files[sat.path] += [one[metric] for one in samples if one.get(metric) is not None]
        return [*files.values()]

    def compared(self, ids, weights, metric, back=np.exp, error=0.05):
        """At every look at the rounds that all sat in; without such rounds, by blocks."""
        uses = [use for id in ids for use in self.cells[id]["cell"]["optimizations"]]
        compiled = any(use["name"] in COMPILED or use["settings"].get("how") == "compile" for use in uses)
        restless = compiled or not all(self.cells[id]["exact"] for id in ids)
        turns, weighs, rounds = [{} for _ in ids], {}, {}
        for id, found in zip(ids, turns, strict=True):
            for sat, samples in zip(self.sat[id], self.samples[id], strict=True):
                for number, one in zip(sat.passes, samples, strict=False):
                    if sat.weight and metric not in OF_START and one.get(metric) is not None:
                        found.setdefault((sat.round, number), []).append(one[metric])
                        weighs[sat.round] = sat.weight
        for seat in sorted(set.intersection(*map(set, turns))):
            means = [np.mean(found[seat]) for found in turns]
            if min(means) <= 0:
                raise ValueError("not positive")
            logs = sum(weight * math.log(mean) for weight, mean in zip(weights, means, strict=True))
            rounds.setdefault(seat[0], []).append(logs)
        if not rounds:
            return bootstrap([self.by_block(id, metric, back is np.exp) for id in ids], weights, back=back, error=error)
        told, least = [(logs, weighs[name]) for name, logs in rounds.items()], 3 if restless else 2
        ends = sorted({look for look in LOOKS if least <= look < len(told)} | {len(told)})
        looks = [at_look(told[:end], restless, back, error) for end in ends]
        if metric in CERTAIN and back is np.exp and len({round(log, 12) for logs, _ in told for log in logs}) == 1:
            return [Found(*[looks[-1].estimate] * 3, max(2, len(told)))]
        return looks

    def rows(self, study, check):
        """By side, the row that it names, or those of its curve."""
        for address in (check[side] for side in ("of", "to", "than_of", "than_to") if check.get(side)):
            experiment, _, label = address.partition("/")
            rows, over = self.plan["studies"][study]["rows"][experiment], check.get("over")
            curve = [row for row in rows.values() if row["label"] == label]
            yield sorted(curve, key=lambda row: float(row["sweep"][over])) if over else [rows[label]]

    def outcomes(self, row):
        return [sat.result["outcome"].removeprefix("implied-") for sat in self.sat.get(row["cell"], [])]

    def is_ok(self, row):
        return "ok" in self.outcomes(row) and "wrong" not in self.outcomes(row)

    def judge(self, study, claim, check):
        """The verdict of a check, its interval, and where that lies; other cells than are meant decide nothing."""
        verdict, *found = self.measured(study, check)
        unfit = is_unfit(self.plan, claim, check["kind"], [row for side in self.rows(study, check) for row in side])
        return NOT_HERE if unfit else verdict, *found, *[None][len(found) - 1 :]

    def devices_like(self, pattern):
        machine, on_gpu = self.plan["machine"], self.plan["device"] == "cuda"
        names = [gpu["name"] for gpu in machine["gpus"]] if on_gpu else [machine["cpu"]["model"]]
        return sum(bool(re.search(pattern, name)) for name in names)

    def measured(self, study, check):
        """What the cells of a check say, whatever its claim needs of them."""
        kind, metric, expect, rows = check["kind"], check.get("metric"), check.get("expect"), [*self.rows(study, check)]
        other_work = any(departs(row) for side in rows for row in side)
        if kind in ("absolute", "frontier"):
            expect = expect or {"about": check["published"], "within": check.get("within")}
            lacking = other_work or not all(row["cell"] for row in rows[0])
            if lacking or self.devices_like(check["hardware"]) < check["devices"]:
                return NOT_HERE, None
        if kind == "frontier":
            return self.largest(rows[0], check)
        if kind == "outcome":
            return self.ended(rows[0][0], check), None
        if kind == "computed":
            exactly = Found(*[computed(check)] * 3)
            agrees = says(exactly, *bounds(expect, self.tolerance)) == "supported"
            return "agrees on paper" if agrees else "differs on paper", exactly
        if check.get("there") and self.devices_like(check["there"]["hardware"]) and not other_work:
            expect = check["there"]["expect"]
        kept = [points for points in zip(*rows, strict=True) if all(map(self.is_ok, points))]
        if len({points[0]["sweep"].get(check.get("over")) for points in kept}) < (2 if kind == "shape" else 1):
            return NOT_HERE, None
        ids = [row["cell"] for points in zip(*kept, strict=True) for row in points]
        if kind in ("ratio", "gain", "identity") and ids[0] == ids[1] and ids[2:3] == ids[3:]:
            return "undecided", None
        if kind == "identity":
            return self.same_tokens(*ids)
        try:
            looks = self.looks(kind, ids, metric, kept, check.get("over"))
        except ValueError:
            return "undecided", None
        wanted, is_ratio = bounds(expect, self.tolerance), kind in ("ratio", "gain")
        verdict, found = settled(looks, *wanted, is_ratio)
        return verdict, found, place(found, *wanted) if found and is_ratio else None

    def looks(self, kind, ids, metric, kept, over):
        if kind in ("ratio", "gain"):
            return self.compared(ids, [1, -1, -1, 1][: len(ids)], metric)
        blocks = self.by_block(ids[0], metric)
        if kind == "value" and metric in CERTAIN:
            worst = min if metric == "top1_agreement" else max
            values = [worst(block) for block in blocks if block]
            return [Found(*[worst(values)] * 3, max(2, len(values)))] if values else []
        if kind != "shape":
            return of_one(blocks)
        points = [(math.log(one["sweep"][over]), {**one["sweep"], over: 0}) for one, *_ in kept]
        apart = [x - np.mean([other for other, group in points if group == own]) for x, own in points]
        slopes = [each / sum(one**2 for one in apart) for each in apart]
        return self.compared(ids, [*slopes, *(-each for each in slopes)][: len(ids)], metric, np.asarray)

    def ended(self, row, check):
        outcomes, sats = set(self.outcomes(row)), self.sat.get(row["cell"], [])
        reason = next((sat.result["reason"] for sat in sats if sat.result["reason"]), None) or ""
        if len(outcomes) > 1:
            return "undecided"
        if outcomes == {check["expect"]} and (check["reason_contains"] or "").lower() in reason.lower():
            return "supported"
        return NOT_HERE if outcomes <= {"unavailable", "timeout", "error"} else "refuted"

    def largest(self, rows, check):
        fitting = [row for row in rows if self.is_ok(row)]
        failing = [row for row in rows if row not in fitting]
        if any("wrong" in (ends := self.outcomes(row)) or ends[0] != "oom" for row in failing):
            return NOT_HERE, None
        fits = max((float(row["sweep"][check["over"]]) for row in fitting), default=0.0)
        fails = min((float(row["sweep"][check["over"]]) for row in failing), default=math.inf)
        if fits > check["published"] or fails <= check["published"]:
            return "refuted", Found(fits)
        return "supported" if fits == check["published"] and fails < math.inf else "undecided", Found(fits)

    def same_tokens(self, of, to):
        sats = (self.sat[of], self.sat[to])
        ours, theirs = ([one["tokens_sha256"] for sat in side for one in sat.result["samples"]] for side in sats)
        share = ours.count(max(sorted(set(theirs)), key=theirs.count)) / len(ours)
        if share == 1 and len(set(theirs)) == 1:
            return "supported", Found(share, share, share)
        only = {self.cells[id]["cell"]["dtype"] for id in (of, to)} == {"float32"}
        return "refuted" if only else "undecided", Found(share, share, share)

    def disagreements(self):
        """What is wrong with the files, and every verdict and number that does not follow from them."""
        wanted = [(study, claim) for study, of in self.plan["studies"].items() for claim in of["study"]["claims"]]
        found, said = list(self.wrong), {(one["study"], one["id"]): one for one in self.verdicts["claims"]}
        for study, claim in wanted:
            name, written = f"{study}/{claim['id']}", said.get((study, claim["id"]))
            if written is None or len(written["checks"]) != len(claim["checks"]):
                found.append(f"{name}: not every check was judged")
                continue
            verdicts = []
            for check, was in zip(claim["checks"], written["checks"], strict=True):
                verdict, interval, where = self.judge(study, claim, check)
                verdicts.append(verdict)
                found += differing(f"{name}, {check['kind']}", [verdict, *(interval or NOTHING)[:3]], was)
                found += misquoted(name, was, where)
            found += differing(name, [combined([check["kind"] for check in claim["checks"]], verdicts)], written)
        for id, cell in self.verdicts["cells"].items():
            for metric, was in ((metric, was) for metric, was in cell["metrics"].items() if "ceiling" not in metric):
                own = [*of_one(self.by_block(id, metric)), NOTHING][0]
                found += differing(
                    f"{id}, {metric}", [None, *own[:3]], {"verdict": None, "estimate": was["value"], **was}
                )
        for was in self.verdicts["recommendations"]:
            ids = [was["cell"], was["reference"]]
            ids = ids if was["metric"].endswith("tok_s") else ids[::-1]
            looks = self.compared(ids, [1, -1], was["metric"], error=was["error"])
            found += differing(
                f"what {was['cell']} gains",
                [None, *[NOTHING, *looks][-1][:3]],
                {"verdict": None, "estimate": was["gain"], **was},
            )
        return found


def verify(folder, *reports):
    """How many claims there are, and what does not follow."""
    run = Run(folder)
    said = [line for path in reports for line in unsaid(run.verdicts, Path(path).read_text(encoding="utf-8"))]
    return len(run.verdicts["claims"]), run.disagreements() + said


if __name__ == "__main__":
    claims, wrong = verify(*sys.argv[1:])
    print("\n".join(wrong) or f"{claims} claims follow from their raw results")
    sys.exit(bool(wrong))
