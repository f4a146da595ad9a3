"""The two intervals of docs/statistics.md, over rounds in which cells took turns and over blocks, and what they say."""

import math
from collections import namedtuple

import numpy as np
from scipy.special import ndtri, stdtrit

LOOKS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
Found = namedtuple("Found", "estimate low high rounds", defaults=(None, None, 1))


def bootstrap(series, weights, is_log=True, back=np.exp, error=0.05):
    """Of the mean over blocks of the sum of weight x scale(median), over the blocks that all series have."""
    scale = np.log if is_log else np.asarray
    common = [n for n in range(min(map(len, series))) if all(blocks[n] for blocks in series)]
    if is_log and any(value <= 0 for blocks in series for block in blocks for value in block):
        raise ValueError("not positive")
    if not common:
        return []
    chosen = [[np.array(blocks[n], dtype=float) for n in common] for blocks in series]
    medians = [scale(np.array([np.median(block) for block in blocks])) for blocks in chosen]
    count, centre = len(common), float(np.mean(sum(w * each for w, each in zip(weights, medians, strict=True))))
    if count < 2 or all(np.ptp(np.concatenate(blocks)) == 0 for blocks in chosen):
        return [Found(float(back(centre))) if count < 2 else Found(*[float(back(centre))] * 3, count)]
    random, values = np.random.default_rng(0), np.zeros((2000, count))
    drawn = random.integers(count, size=(2000, count))
    for weight, blocks in zip(weights, chosen, strict=True):
        again = np.empty((2000, count))
        for n, block in enumerate(blocks):
            picks = random.integers(len(block), size=((drawn == n).sum(), len(block)))
            again[drawn == n] = np.median(block[picks], axis=1)
        values += weight * scale(again)
    widening = math.sqrt(count / (count - 1)) * stdtrit(count - 1, 1 - error / 2) / ndtri(1 - error / 2)
    low, high = centre + widening * (np.quantile(values.mean(axis=1), [error / 2, 1 - error / 2]) - centre)
    return [Found(*(float(back(each)) for each in (centre, min(low, centre), max(high, centre))), count)]


def of_one(blocks):
    is_log = all(value > 0 for block in blocks for value in block)
    return bootstrap([blocks], [1.0], is_log, np.exp if is_log else np.asarray)


def at_look(rounds, restless, back, error=0.05):
    """The contrast after these rounds: passes trimmed, rounds pooled with a prior, the look paid for."""
    inflation, floor, prior_df, least = (1.3, 0.03, 3.0, 3) if restless else (1.3, 0.01, 5.0, 2)
    places, within, weights, count = [], [], np.array([weight for _, weight in rounds]), len(rounds)
    for logs, _ in rounds:
        kept = np.sort(logs)[len(logs) // 5 : len(logs) - len(logs) // 5]
        bent = np.clip(logs, kept[0], kept[-1])
        places.append(kept.mean())
        within.append(bent.var() * len(bent) / (len(kept) * (len(kept) - 1)) if len(kept) > 1 else 0.0)
    centre, explained = np.average(places, weights=weights), inflation * np.average(within, weights=weights)
    between = (weights * (places - centre) ** 2).sum() / weights.mean()
    passes_df, known, df = min(prior_df, sum(len(logs) - 1 for logs, _ in rounds)), explained + floor**2, count - 1
    if explained >= inflation * 1e-20 and passes_df:
        known_df = known**2 / (explained**2 / passes_df + floor**4 / prior_df)
        between, df = known_df * known + between, known_df + df
    if count < least or df == 0:
        return Found(float(back(centre)), rounds=count)
    standard_error = math.sqrt(between / df * (weights**2).sum()) / weights.sum()
    half = stdtrit(df, 1 - error / 2 ** (1 + sum(least <= look < count for look in LOOKS)) / 2) * standard_error
    return Found(*(float(back(each)) for each in (centre, centre - half, centre + half)), count)


def bounds(expect, tolerance):
    if isinstance(expect, str):
        above, below = math.nextafter(1 + tolerance, math.inf), math.nextafter(1 - tolerance, -math.inf)
        return {"above": (above, math.inf), "below": (-math.inf, below), "same": (1 - tolerance, 1 + tolerance)}[expect]
    if expect["about"] is not None:
        return tuple(sorted(expect["about"] * (1 + sign * expect["within"]) for sign in (-1, 1)))
    return tuple(
        end if end is not None else out for end, out in ((expect["at_least"], -math.inf), (expect["at_most"], math.inf))
    )


def says(found, low, high):
    if found.low is None or not (found.high < low or found.low > high):
        return "supported" if found.low is not None and low <= found.low and found.high <= high else "undecided"
    return "refuted"


def place(found, low, high):
    """Where an interval lies beside its range, in a sentence's words."""
    if found.low is None:
        return "too early to tell"
    sides = {"supported": "inside", "refuted": "below" if found.high < low else "above"}
    return f"{sides.get(says(found, low, high), 'on both sides of an end of')} the range asked for"


def combined(kinds, verdicts):
    """A claim's verdict from those of its checks."""
    if all("on paper" in verdict for verdict in verdicts):
        return "differs on paper" if "differs on paper" in verdicts else "agrees on paper"
    told = [verdict for verdict in verdicts if verdict != "not runnable here"]
    absent = {kind for kind, verdict in zip(kinds, verdicts, strict=True) if verdict == "not runnable here"}
    if "refuted" not in told and (not told or absent - {"absolute", "frontier"}):
        return "not runnable here"
    return next((each for each in ("refuted", "undecided", "bounded") if each in told), "supported")


def settled(looks, low, high, is_ratio):
    """The verdict of the first look that settles it, else of the last one."""
    if not looks:
        return "undecided", None
    found = next((each for each in looks if says(each, low, high) != "undecided"), looks[-1])
    verdict, is_about_1 = says(found, low, high), is_ratio and -math.inf < low < 1 < high < math.inf
    if verdict == "undecided" and is_about_1 and found.low is not None and found.low <= 1 <= found.high:
        return "bounded" if max(1 - found.low, found.high - 1) <= 0.25 else verdict, found
    return verdict, found
