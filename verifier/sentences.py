"""What sentences and a rendered report say, beside the verdicts and the numbers that they are of."""

import re


def misquoted(name, check, where):
    """Numbers of a sentence about a ratio that are not those beside it, rounded; and another place than they have."""
    if where and f": {where}" not in check["sentence"]:
        yield f"{name}: it does not say that it is {where}"
    said = re.search(r"is ([\d.,]+) times .* \(([\d.,]+) to ([\d.,]+)\)", check["sentence"])
    for text, value in zip(
        said.groups() if said else (), (check[end] for end in ("estimate", "low", "high")), strict=False
    ):
        if abs(float(text.replace(",", "")) - value) > max(0.51 * 10.0 ** -len(text.partition(".")[2]), 0.005 * value):
            yield f"{name}: it says {text}, and {value} is beside it"


def unsaid(verdicts, report):
    """What a rendered report says otherwise than the verdicts that it was made of."""
    for claim in verdicts["claims"]:
        anchor = re.sub(r"[^a-z0-9]+", "-", f"claim-{claim['study']}-{claim['id']}".lower())
        rows = re.findall(rf"\[{claim['id']}\]\(#{anchor}\) \|.*".lower(), report.lower())
        if not rows or any(f"| {claim['verdict']} |" not in row.replace("**", "") for row in rows):
            yield f"the report does not say that {claim['study']}/{claim['id']} is {claim['verdict']}"
        for check in claim["checks"]:
            if f"*{check['verdict']}*: {check['sentence']}" not in report:
                yield f"the report does not say of {claim['study']}/{claim['id']}: {check['sentence']}"
