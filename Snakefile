# Claimbench: every stage of the data flow is one rule file; the plan is made here, once, before anything runs.
#
#   params.yaml + studies -> plan -> fetch, shard -> measure -> aggregate -> judge -> report
#
# Results live under a key that holds the code, the libraries and the machine (see src/claimbench/planning/result_key.py): a change of
# one of them is a new path, so Snakemake needs no other trigger than a file that is missing or older than its inputs.


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"


# The raw results are targets of their own: a clone that has only the rendered report must still measure.
rule all:
    default_target: True
    input:
        FLOW.results,
        FLOW.decided,
        "reports/report.md",
        "reports/report.html",
    message:
        "Everything is here: results, reports/report.md and reports/report.html"


rule measured:
    input:
        FLOW.results,
        FLOW.decided,
        FLOW.frontiers,
        "results/checkpoints.json",
        FLOW.plan_json,
    message:
        "Everything is measured"


rule judged:
    input:
        "results/verdicts.json",
    message:
        "Every claim has a verdict: results/verdicts.json"


rule fetched:
    input:
        FLOW.manifests,
    message:
        "Every checkpoint is here"


include: "workflow/rules/plan.smk"
include: "workflow/rules/environment.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/shard.smk"
include: "workflow/rules/ceiling.smk"
include: "workflow/rules/measure.smk"
include: "workflow/rules/rounds.smk"
include: "workflow/rules/frontier.smk"
include: "workflow/rules/aggregate.smk"
include: "workflow/rules/judge.smk"
include: "workflow/rules/report.smk"
